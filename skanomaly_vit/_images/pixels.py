"""Decoded pixels: conversion of types, and smaller pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array


def as_uint8(pixels: Array) -> Array:
    """Pixels of uint8, uint16 or floats in [0, 1] as uint8."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    return np.rint(as_unit(pixels) * np.float32(255)).astype(np.uint8)


def as_unit(pixels: Array) -> Array:
    """Pixels of uint8, uint16 or floats in [0, 1] as float32 in [0, 1]."""
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    return pixels.astype(np.float32) / np.float32(white)


def shrink(pixels: Array, longest: int) -> Image.Image:
    """Shrink an image (h, w, 3) of any type to RGB of at most `longest` pixels a side."""
    image = Image.fromarray(as_uint8(pixels))
    return image.resize(fitting(image.size, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)


def fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height, reduced in proportion to at most `longest` pixels a side."""
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
