"""Framing of images in a model file: the region of interest, and how images fit the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from skanomaly_vit._images.regions import Framing
from skanomaly_vit._images.saved_framing import describe_tiles, n_packed, read_tiles, unpack_roi
from skanomaly_vit.persistence._record import StateRecord


def describe_roi(roi: Any) -> None:
    """Leave an array out of the parameters: the file holds the region that `fit` read."""


def write_framing(record: StateRecord, framing: Framing) -> None:
    """Write the framing of a fit, unless it is plain."""
    if framing.is_plain:
        return
    part = record.write_part("framing")
    part.write(keep_aspect=framing.keep_aspect, tiles=describe_tiles(framing.tiles))
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
        roi = unpack_roi(part.read_array("roi", n_packed(shape), dtype=np.uint8), shape)
    tiles = read_tiles(part.read("tiles", (list, int, str, type(None))))
    framing = Framing(roi, part.read("keep_aspect", bool), tiles)
    part.close()
    return framing
