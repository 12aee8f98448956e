"""Anomaly maps as files: a name for each, a picture with the map laid over it."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from skanomaly_vit._images import open_images

# Of the colour where a map reaches the top of the scale; below, in proportion.
_OPACITY = 0.7


class TargetNames:
    """Names of files to write, below one folder, no two of different images alike.

    Parameters
    ----------
    folder : str
        Where they go.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # Keyed without regard to case, which some file systems have none of.
        self._taken: dict[str, str] = {}

    def name(self, path: str) -> str:
        """Where to write what is made of an image, suffix to come: its own path, below the folder.

        The folders of the path are kept, but for what leads upwards; where that makes two alike,
        the second gets a number.
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
    np.save(path, np.asarray(anomaly_map, dtype=np.float32))
    return path


def save_overlay(target: str, image_path: str, anomaly_map: np.ndarray, top: float) -> str:
    """Write an image with its map over it as a PNG."""
    path = f"{target}.png"
    lay_over(open_images([image_path])[0], anomaly_map, top).save(path)
    return path


def lay_over(image: np.ndarray, anomaly_map: np.ndarray, top: float) -> Image.Image:
    """Colour an image where its map is high.

    Parameters
    ----------
    image : ndarray of shape (height, width, 3)
        uint8, uint16 or floats in [0, 1].
    anomaly_map : ndarray of shape (height, width)
        Higher = more abnormal.
    top : float
        Value of the map that gets the brightest colour; 0 and below get none.
    """
    import matplotlib

    level = np.clip(anomaly_map / top, 0, 1)  # (h, w)
    colours = matplotlib.colormaps["inferno"](_as_bytes(level), bytes=True)[..., :3]  # (h, w, 3)
    if image.dtype == np.uint16:
        image = image / np.float32(65535)
    base = image if image.dtype == np.uint8 else _as_bytes(image)
    return Image.composite(
        Image.fromarray(colours),
        Image.fromarray(np.ascontiguousarray(base)),
        Image.fromarray(_as_bytes(level * _OPACITY)),
    )


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return (values * 255 + 0.5).astype(np.uint8)
