"""Framing of images in a model file: the region of interest, and how images fit the input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skanomaly_vit._images.regions import Framing
from skanomaly_vit._images.tiles import check_tiles
from skanomaly_vit.persistence._record import StateRecord

#: Largest number of pixels of a region, so that a forged size cannot fill the memory.
_MOST_PIXELS = 2**28


def describe_roi(roi: Any) -> None:
    """Leave an array out of the parameters: the file holds the region that `fit` read."""


def write_framing(record: StateRecord, framing: Framing) -> None:
    """Write the framing of a fit, unless it is plain."""
    if framing.is_plain:
        return
    part = record.write_part("framing")
    tiles = framing.tiles
    part.write(
        keep_aspect=framing.keep_aspect,
        tiles=list(map(int, tiles)) if isinstance(tiles, tuple | list) else tiles,
    )
    if framing.roi is not None:
        part.write(shape=[int(side) for side in framing.roi.shape])
        part.write_tensor("roi", np.packbits(framing.roi))


def read_framing(record: StateRecord) -> Framing:
    """The inverse of `write_framing`."""
    if "framing" not in record.values:
        return Framing()
    part, roi = record.read_part("framing"), None
    if "shape" in part.values:
        shape = part.read_list("shape", int)
        if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > _MOST_PIXELS:
            raise ValueError(f"{part.name}.shape is {shape}, not the height and width of a region")
        n_pixels = math.prod(shape)
        packed = part.read_array("roi", math.ceil(n_pixels / 8), dtype=np.uint8)
        roi = np.unpackbits(packed, count=n_pixels).reshape(shape).astype(bool)
        if not roi.any():
            raise ValueError(f"{part.name}.roi leaves no pixel that counts")
    tiles = part.read("tiles", (list, int, str, type(None)))
    if tiles is not None:
        check_tiles(tiles)
    if isinstance(tiles, list):
        tiles = tuple(tiles)
    framing = Framing(roi, part.read("keep_aspect", bool), tiles)
    part.close()
    return framing
