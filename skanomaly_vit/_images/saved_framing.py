"""Framing in a file: a region of interest as bits, tiles as numbers, checked when read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.tiles import check_tiles

#: Largest number of pixels of a region, so that a forged size cannot fill the memory.
_MOST_PIXELS = 2**28


def n_packed(shape: Sequence[int]) -> int:
    """Number of bytes of a packed region.

    Raises
    ------
    ValueError
        If it is no height and width of a region.
    """
    is_size = len(shape) == 2 and all(type(side) is int and side >= 1 for side in shape)
    if not is_size or math.prod(shape) > _MOST_PIXELS:
        raise ValueError(f"the shape {list(shape)} is not the height and width of a region")
    return math.ceil(math.prod(shape) / 8)


def unpack_roi(packed: Array, shape: Sequence[int]) -> Array:
    """The region that ``np.packbits`` packed, bool of a shape that `n_packed` has checked.

    Raises
    ------
    ValueError
        If there are more or fewer bits, or none is set.
    """
    if packed.shape != (n_packed(shape),):
        raise ValueError(f"a region of {list(shape)} pixels does not have {packed.size} bytes")
    roi = np.unpackbits(packed, count=math.prod(shape)).reshape(tuple(shape)).astype(bool)
    if not roi.any():
        raise ValueError("the region of interest leaves no pixel that counts")
    return roi


def describe_tiles(tiles: Any) -> Any:
    """Tiles as JSON has them."""
    if isinstance(tiles, tuple | list):
        return [int(n) for n in tiles]
    return tiles if tiles is None or isinstance(tiles, str) else int(tiles)


def read_tiles(described: Any) -> Any:
    """The inverse of `describe_tiles`; a ValueError if it is none."""
    if described is not None:
        check_tiles(described)
    return tuple(described) if isinstance(described, list) else described
