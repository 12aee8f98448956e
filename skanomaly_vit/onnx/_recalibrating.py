"""Calibration of a graph in int8: threshold and p-values from its own scores."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from skanomaly_vit._images.units import find_units
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.onnx._file import require
from skanomaly_vit.onnx._graph import CALIBRATION, OFFSET, Calibration

INT8 = "int8"

#: Largest accepted noise of rounding, in standard deviations of the scores of normal images.
_MOST_NOISE = 0.5


def check_quantize(quantize: str | None, images: Any, groups: Any) -> None:
    """Reject a wrong value, and images without a use, before any work."""
    if quantize not in (None, INT8):
        raise ValueError(f"quantize={quantize!r} is neither {INT8!r} nor None")
    if quantize is None and (images is not None or groups is not None):
        raise ValueError(
            f"calibration_images are for quantize={INT8!r}: in float32 the file keeps threshold "
            "and p-values of the detector, to which `calibrate` adds images"
        )
    if quantize is not None and images is None:
        raise ValueError(
            f"quantize={quantize!r} moves scores, so threshold and p-values are computed again: "
            "pass calibration_images, normal images that the detector has not learned from"
        )


def calibrated_anew(
    detector: TransformalyDetector, images: Any, groups: Any
) -> TransformalyDetector:
    """A copy of a detector that these images alone calibrate, by the rules of `calibrate`."""
    rate = detector._false_alarms().rate
    units = find_units(detector._open(images, reset=False), groups).units
    n_units, needed = len(np.unique(units)), math.ceil(1 / rate - 1e-9) - 1
    if n_units < needed:
        raise ValueError(
            f"calibration_images are {n_units} different images or groups, too few for a "
            f"false-alarm rate of {rate:g}: pass at least {needed}, better five times as many"
        )
    return copy.copy(detector).calibrate(images, groups=groups, replace=True)


def use_own_scores(proto: Any, detector: TransformalyDetector, scores: np.ndarray) -> float:
    """Set threshold and calibration of a graph, and of its detector, to scores of the graph.

    Parameters
    ----------
    proto : ModelProto
        The graph, whose calibration has as many scores.
    detector : TransformalyDetector
        From `calibrated_anew`, with its own scores of the same images.
    scores : ndarray of shape (n_images,), float64

    Returns
    -------
    noise : float
        Standard deviation of the differences of the scores, in that of the detector's.

    Raises
    ------
    ValueError
        If the noise is too large.
    """
    former, units = detector._require_calibration(), detector.calibration_units_
    noise = float(np.std(scores - former) / max(np.std(former), np.finfo(float).tiny))
    if not noise <= _MOST_NOISE:
        raise ValueError(
            f"int8 moves the scores of normal images by {noise:.2g} of their standard deviation, "
            f"more than {_MOST_NOISE}: this backbone does not bear it. Export without quantize."
        )
    detector.offset_ = detector._false_alarms().threshold(scores, units)
    detector.calibration_scores_ = scores
    calibration = Calibration(scores, units)
    values: dict[str, Any] = {OFFSET: np.float64(detector.offset_)}
    values |= {f"{CALIBRATION}.{name}": v.numpy() for name, v in calibration.named_buffers()}
    _set(proto, values)
    return noise


def _set(proto: Any, values: dict[str, Any]) -> None:
    """Set constants of a graph, of the same shapes, by name."""
    from_array = require("onnx").numpy_helper.from_array
    weights = {weight.name: weight for weight in proto.graph.initializer}
    for name, value in values.items():
        weights[name].CopyFrom(from_array(np.asarray(value), name))
