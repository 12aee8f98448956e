"""Fixtures in an ONNX file: images with the scores that torch gave them, compared without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from skanomaly_vit._images.fixture_files import (
    as_text,
    compare_decoding,
    compare_resizing,
    digests_of,
    from_text,
    open_files,
    sample_inputs,
    sample_pixels,
)
from skanomaly_vit._utils.stages import Stage, largest

#: Largest difference of a score that is the same, in standard deviations of calibration scores: as
#: `export_onnx` accepts.
TOLERANCE = 0.005

#: Pillow resizes here, and torch did there.
_RESIZING = 3e-5


def describe_fixtures(fixtures: Any) -> dict[str, Any]:
    """JSON of the fixtures of a detector, for the metadata of a file."""
    numbers = fixtures.numbers
    return {
        "files": [as_text(content) for content in fixtures.files],
        "digests": numbers.digests,
        "pixels": as_text(numbers.pixels.astype("<f4").tobytes()),
        "inputs": as_text(numbers.inputs.astype("<f4").tobytes()),
        "scores": numbers.scores.sum(axis=0).tolist(),
        "unit": fixtures.unit,
    }


def own_scores(detector: Any, fixtures: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of the fixtures by a file in int8 itself: those of torch differ by its rounding."""
    files, _, _ = _unpack(fixtures)
    _, prepared = _read(detector, files)
    return {"scores": np.asarray(detector._run_graph(prepared), dtype=float).tolist()}


def check_fixtures(found: Any) -> None:
    """Refuse what `describe_fixtures` does not give, with a ValueError, TypeError or KeyError."""
    n = len(found["files"])
    if not n or not len(found["digests"]) == len(found["scores"]) == n:
        raise ValueError("there are other numbers of files, digests and scores")
    _, pixels, inputs = _unpack(found)
    numbers = [found["unit"], *found["scores"], *pixels.tolist(), *inputs.tolist()]
    if not (pixels.size and inputs.size and all(map(math.isfinite, numbers)) and found["unit"] > 0):
        raise ValueError("they hold no finite numbers")


def compare_fixtures(detector: Any, found: Mapping[str, Any]) -> tuple[list[Stage], float]:
    """Stages beside those that torch had, and the largest difference of a score in deviations."""
    files, pixels, inputs = _unpack(found)
    decoded, prepared = _read(detector, files)
    # torch has a channel of the pixels that count where framing leaves some out.
    n_channels = 3 if detector._framing.counts_all else 4
    here = sample_inputs(prepared[:, :n_channels], detector._preprocessing.std).reshape(-1)
    stages = [
        compare_decoding((digests_of(decoded), sample_pixels(decoded)), (found["digests"], pixels)),
        compare_resizing(here, inputs, _RESIZING),
    ]
    scores = detector._run_graph(prepared)
    difference = largest(scores, found["scores"], found["unit"])
    stages.append(
        Stage("graph", difference, "standard deviations", TOLERANCE, len(found["scores"]))
    )
    return stages, difference


def _read(detector: Any, files: list[bytes]) -> tuple[list[np.ndarray], np.ndarray]:
    """Pixels of the files, and the inputs of the graph that they become."""
    source = open_files(files, detector._framing)
    everything = range(len(source))
    decoded = [source[position] for position in everything]
    return decoded, np.stack(source.load_framed(everything, detector._prepare))


def _unpack(found: Mapping[str, Any]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    files = [from_text(text) for text in found["files"]]
    pixels = np.frombuffer(from_text(found["pixels"]), "<f4")
    inputs = np.frombuffer(from_text(found["inputs"]), "<f4")
    return files, pixels, inputs
