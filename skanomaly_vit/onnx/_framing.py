"""Framing in an ONNX file: which pixels count, and how images fit the input of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skanomaly_vit._images.fixture_files import as_text, from_text
from skanomaly_vit._images.regions import PLAIN_FRAMING, Framing
from skanomaly_vit._images.saved_framing import describe_tiles, n_packed, read_tiles, unpack_roi


def describe_framing(framing: Framing) -> dict[str, Any] | None:
    """JSON of a framing, for the metadata of a file; None if it is plain."""
    if framing.is_plain:
        return None
    roi = framing.roi
    return {
        "keep_aspect": bool(framing.keep_aspect),
        "tiles": describe_tiles(framing.tiles),
        "roi_shape": None if roi is None else [int(side) for side in roi.shape],
        "roi": None if roi is None else as_text(np.packbits(roi).tobytes()),
    }


def framing_of(values: Mapping[str, Any]) -> Framing:
    """The framing in the metadata of a file.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is none.
    """
    found = values["framing"]
    if found is None:
        return PLAIN_FRAMING
    if type(found["keep_aspect"]) is not bool:
        raise ValueError(f"keep_aspect is {found['keep_aspect']!r}")
    shape, roi = found["roi_shape"], None
    if shape is not None:
        # The text has its final length before it becomes bytes, so that no forged one takes memory.
        if len(found["roi"]) != 4 * -(-n_packed(shape) // 3):
            raise ValueError(f"a region of {shape} pixels is not of {len(found['roi'])} characters")
        roi = unpack_roi(np.frombuffer(from_text(found["roi"]), np.uint8), shape)
    framing = Framing(roi, found["keep_aspect"], read_tiles(found["tiles"]))
    if framing.is_plain:
        raise ValueError("it frames nothing")
    return framing
