"""Pseudo-anomalies: normal images, altered until they are normal no more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _patch_shuffle(image: np.ndarray, rng: np.random.Generator, n_patches: int) -> np.ndarray:
    """Permute the patches of a grid; a remainder at the lower and right edge stays."""
    height, width = (length // n_patches for length in image.shape[:2])
    corners = [(i * height, j * width) for i in range(n_patches) for j in range(n_patches)]
    order = np.arange(len(corners))
    while (order == np.arange(len(corners))).all():
        order = rng.permutation(len(corners))
    shuffled = image.copy()
    for (top, left), source in zip(corners, order, strict=True):
        y, x = corners[source]
        patch = image[y : y + height, x : x + width]
        shuffled[top : top + height, left : left + width] = patch
    return shuffled


def _cut_paste(image: np.ndarray, rng: np.random.Generator, n_patches: int = 0) -> np.ndarray:
    """Paste a rectangle of the image, its colours a little changed, elsewhere."""
    # Area and aspect ratio are CutPaste's.
    area = rng.uniform(0.02, 0.15) * image.shape[0] * image.shape[1]
    aspect = np.exp(rng.uniform(-1, 1) * np.log(3.3))
    sides = np.array([np.sqrt(area * aspect), np.sqrt(area / aspect)])
    height, width = np.clip(np.round(sides).astype(int), 1, image.shape[:2])
    room = (image.shape[0] - height + 1, image.shape[1] - width + 1)
    # Two of the places where it fits.
    places = rng.choice(room[0] * room[1], size=2, replace=False)
    (y, top), (x, left) = np.unravel_index(places, room)
    pasted = image.copy()
    patch = image[y : y + height, x : x + width]
    pasted[top : top + height, left : left + width] = _jitter(patch, rng)
    return pasted


def _jitter(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale each channel by up to 10 % up or down, a grey patch as a whole."""
    is_grey = (patch == patch[..., :1]).all()
    scaled = patch * rng.uniform(0.9, 1.1, size=1 if is_grey else 3)
    if patch.dtype.kind == "f":
        return scaled.clip(0, 1)
    return scaled.round().clip(0, np.iinfo(patch.dtype).max)


def _rotation(image: np.ndarray, rng: np.random.Generator, n_patches: int = 0) -> np.ndarray:
    """Turn by 90, 180 or 270 degrees; by 180 if that alone keeps height and width."""
    is_square = image.shape[0] == image.shape[1]
    return np.rot90(image, int(rng.integers(1, 4)) if is_square else 2).copy()


#: Kind -> alteration: an image (h, w, 3) becomes another one of the same size and type.
ALTERATIONS: dict[str, Callable[[np.ndarray, np.random.Generator, int], np.ndarray]] = {
    "patch_shuffle": _patch_shuffle,
    "cut_paste": _cut_paste,
    "rotation": _rotation,
}
