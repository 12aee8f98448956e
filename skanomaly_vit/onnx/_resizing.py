"""Resizing of images and maps with Pillow and numpy, without torch.

torch took its filters from Pillow. Rounding differs: pixels by less than 3e-5 of white and 1e-6 on
average, maps by the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.pixels import as_unit
from skanomaly_vit._images.preprocessing import Preprocessing

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def prepare(pixels: Array, preprocessing: Preprocessing) -> Array:
    """Pixels (h, w, 3) of any type -> (3, height, width) float32, resized and normalized."""
    planes = [
        _resize(np.ascontiguousarray(plane), preprocessing)
        for plane in as_unit(pixels).transpose(2, 0, 1)
    ]
    image = np.stack(planes).clip(0, 1)  # bicubic overshoots
    mean, std = (
        np.array(values, np.float32).reshape(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (image - mean) / std


def _resize(plane: Array, preprocessing: Preprocessing) -> Array:
    """One channel (h, w) float32 -> (height, width)."""
    height, width = size = preprocessing.image_size
    if plane.shape == size:
        return plane
    if preprocessing.interpolation == "nearest":
        # Pillow takes the pixel under the center of the new one, torch the pixel at its edge.
        rows, columns = (
            _nearest(n_old, n_new) for n_old, n_new in zip(plane.shape, size, strict=True)
        )
        return plane[rows[:, None], columns]
    image = Image.fromarray(plane)  # of mode "F"
    return np.asarray(image.resize((width, height), _FILTERS[preprocessing.interpolation]))


def _nearest(n_old: int, n_new: int) -> Array:
    scale = np.float32(n_old) / np.float32(n_new)
    positions = np.floor(np.arange(n_new, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(positions, n_old - 1)


def enlarge(maps: Array, sizes: Sequence[tuple[int, int]]) -> Array | list[Array]:
    """Interpolate maps (n, rows, columns) to the sizes of their images: (n, height, width).

    Maps of different sizes come as a list.
    """
    enlarged = [_interpolate(plane, size) for plane, size in zip(maps, sizes, strict=True)]
    return np.stack(enlarged) if len(set(sizes)) == 1 else enlarged


def _interpolate(plane: Array, size: tuple[int, int]) -> Array:
    (top, bottom, down), (left, right, along) = (
        _neighbors(n_old, n_new) for n_old, n_new in zip(plane.shape, size, strict=True)
    )
    rows = plane[top] * (1 - down)[:, None] + plane[bottom] * down[:, None]  # [height, columns]
    return rows[:, left] * (1 - along) + rows[:, right] * along


def _neighbors(n_old: int, n_new: int) -> tuple[Array, Array, Array]:
    """The two old positions around each new one, and the weight of the second."""
    scale = np.float32(n_old) / np.float32(n_new)
    centers = np.maximum((np.arange(n_new, dtype=np.float32) + np.float32(0.5)) * scale - 0.5, 0)
    first = np.minimum(centers.astype(np.intp), n_old - 1)
    return first, np.minimum(first + 1, n_old - 1), (centers - first).astype(np.float32)
