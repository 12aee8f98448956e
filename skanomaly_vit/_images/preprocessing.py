"""Preprocessing: images at the size and scale of a backbone's input."""

from __future__ import annotations

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


def _resize(pixels: Array, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels (h, w, 3) of any type -> (3, height, width) float32 in [0, 1]."""
    import torch

    # astype copies, so the in-place work below never reaches the pixels of the user. Converting
    # before the transposing copy, not in it, is four times faster for large images.
    planes = np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))
    image = torch.from_numpy(planes)[None]  # [1, 3, h, w]
    if pixels.dtype.kind == "u":
        image.div_(float(np.iinfo(pixels.dtype).max))
    size, mode = tuple(preprocessing.image_size), preprocessing.interpolation
    if tuple(image.shape[2:]) != size:
        image = torch.nn.functional.interpolate(
            image, size=size, mode=mode, antialias=mode != "nearest"
        )  # [1, 3, H, W]
    return image[0].clamp_(0, 1)  # bicubic overshoots
