"""Preprocessing: images at the size and scale of a backbone's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skanomaly_vit._images.decoding import Array

if TYPE_CHECKING:
    import torch


_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


@dataclass(frozen=True)
class Preprocessing:
    """Input format of a backbone.

    Parameters
    ----------
    image_size : (int, int)
        Height and width in pixels.
    mean, std : (float, float, float)
        Mean and standard deviation of the red, green and blue channel, where white is 1.
    interpolation : {"bicubic", "bilinear", "nearest"}, default="bicubic"
        Method that resizes images of another size.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation={self.interpolation!r} is not one of {_INTERPOLATIONS}"
            )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(
                f"image_size={self.image_size!r} is not a (height, width) of at least (1, 1)"
            )


def prepare(pixels: Array, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels (h, w, 3) of any type -> (3, height, width) float32, resized and normalised."""
    import torch

    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return _resize(pixels, preprocessing).sub_(mean).div_(std)


def prepare_region(
    pixels: Array, preprocessing: Preprocessing, region: Array | None, *, keep_aspect: bool
) -> torch.Tensor:
    """As `prepare`, of the pixels that count: (4, height, width) float32; see `frame`."""
    import torch

    def as_array(pixels: Array, preprocessing: Preprocessing) -> Array:
        return prepare(pixels, preprocessing).numpy()

    framed = frame(pixels, preprocessing, region, as_array, keep_aspect=keep_aspect)
    return torch.from_numpy(framed)


def frame(
    pixels: Array,
    preprocessing: Preprocessing,
    region: Array | None,
    prepare: Callable[[Array, Preprocessing], Array],
    *,
    keep_aspect: bool,
) -> Array:
    """An input with the pixels that count: (4, height, width) float32.

    Pixels that do not count are painted in the mean colour before anything is resized, so that
    nothing depends on them. The fourth channel is 1 where a pixel of the input covers one that
    counts, else 0.

    Parameters
    ----------
    pixels : ndarray of shape (h, w, 3)
    preprocessing : Preprocessing
    region : ndarray of shape (h, w), bool, or None
        The pixels that count; None is all.
    prepare : callable
        Resizes and normalises pixels: (h, w, 3) of any type -> (3, height, width) float32.
    keep_aspect : bool
        Whether the image keeps its ratio of sides, in the middle of a canvas that does not count.
    """
    size = preprocessing.image_size
    if keep_aspect:
        size = inner_size(pixels.shape[:2], size)
    if region is not None:
        pixels = _painted(pixels, region, preprocessing.mean)
    image = prepare(pixels, dataclasses.replace(preprocessing, image_size=size))  # [3, h, w]
    canvas = np.zeros((4, *preprocessing.image_size), np.float32)
    top, left = (
        (whole - part) // 2 for whole, part in zip(preprocessing.image_size, size, strict=True)
    )
    inner = canvas[:, top : top + size[0], left : left + size[1]]
    inner[:3] = image
    inner[3] = 1 if region is None else covering(region, size)
    return canvas


def covering(region: Array, size: tuple[int, int]) -> Array:
    """A region at another size: whether each new pixel covers one that counts, (h, w) bool."""
    for n_new in size:
        n_old = len(region)
        spans = [(i * n_old // n_new, -(-(i + 1) * n_old // n_new)) for i in range(n_new)]
        # [n_old, other] -> [other, n_new], so that the next turn is at the other axis
        region = np.stack([region[first:stop].any(axis=0) for first, stop in spans], axis=1)
    return region


def inner_size(shape: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Largest size of an image of some shape within a canvas, with its ratio of sides."""
    (height, width), (rows, columns) = shape, canvas
    scale = min(rows / height, columns / width)
    return (
        min(rows, max(1, round(height * scale))),
        min(columns, max(1, round(width * scale))),
    )


def _painted(pixels: Array, region: Array, mean: tuple[float, float, float]) -> Array:
    white = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else 1.0
    colour = np.asarray(mean) * white
    if pixels.dtype.kind == "u":
        colour = colour.round()
    painted = pixels.copy()
    painted[~region] = colour.astype(pixels.dtype)
    return painted


def _resize(pixels: Array, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels (h, w, 3) of any type -> (3, height, width) float32 in [0, 1]."""
    import torch

    # astype copies, so the in-place work below never reaches the pixels of the user. Converting
    # before the transposing copy, not in it, is four times faster for large images.
    planes = np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))
    image = torch.from_numpy(planes)[None]  # [1, 3, h, w]
    if pixels.dtype.kind == "u":
        image.div_(float(np.iinfo(pixels.dtype).max))
    mode, size = preprocessing.interpolation, preprocessing.image_size
    if tuple(image.shape[2:]) != tuple(size):
        image = torch.nn.functional.interpolate(
            image, size=size, mode=mode, antialias=mode != "nearest"
        )  # [1, 3, H, W]
    return image[0].clamp_(0, 1)  # bicubic overshoots
