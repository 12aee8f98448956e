"""Anomaly maps as files: unique names, raw maps, pictures with the map overlaid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pixels import as_uint8
from skanomaly_vit._utils.files import replacing
from skanomaly_vit.display._overlay import Scale, overlay


class TargetNames:
    """Names of files to write below one folder, unique for each image.

    Parameters
    ----------
    folder : str
        Folder of all files.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # Keys ignore case, as some file systems do.
        self._taken: dict[str, str] = {}

    def name(self, path: str) -> str:
        """Path for the output of an image, without suffix: its own path, below the folder.

        Keeps the folders of the image's path, except ".."; if two paths then collide, the second
        gets a number.
        """
        source = os.path.abspath(path)
        parts = os.path.splitdrive(os.path.normpath(path))[1].split(os.sep)
        plain = os.path.join(self._folder, *(part for part in parts if part not in ("", "..")))
        target, count = plain, 1
        while self._taken.setdefault(target.lower(), source) != source:
            count += 1
            target = f"{plain}-{count}"
        return target


def save_map(target: str, anomaly_map: np.ndarray) -> str:
    """Write a map as float32, (height, width), for `numpy.load`."""
    path = f"{target}.npy"
    with replacing(Path(path)) as stream:
        np.save(stream, np.asarray(anomaly_map, dtype=np.float32))
    return path


def save_overlay(
    target: str, image_path: str, anomaly_map: np.ndarray, scale: Scale, max_pixels: int | None
) -> str:
    """Write an image with its map over it as a PNG."""
    path = f"{target}.png"
    image = Image.fromarray(as_uint8(open_images([image_path], max_pixels=max_pixels)[0]))
    with replacing(Path(path)) as stream:
        overlay(image, anomaly_map, scale).save(stream, format="PNG")
    return path
