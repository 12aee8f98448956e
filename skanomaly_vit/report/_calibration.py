"""Calibration of a detector, as a page needs it to follow a threshold that moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit.calibration import conformal_p_values, false_alarm_bound

Array: TypeAlias = np.ndarray[Any, Any]

#: Share of deployments in which the bounds of all thresholds hold.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal images, and what they say of every threshold.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Ascending.
    groups : ndarray of shape (n,) or None
        Group of each score.
    n_units : int
        Number of groups, or of scores.
    rates : ndarray of shape (n + 1,)
        Expected share of false alarms of a threshold with 0, 1, ..., n of the scores below it.
    limits, bounds : ndarray of shape (n_units,) or None
        Bound of a threshold with 0, 1, ..., n_units - 1 of the ascending `limits` below it, and 1
        beyond them. None if the scores come from several models and bound nothing.
    """

    scores: Array
    groups: Array | None
    n_units: int
    rates: Array
    limits: Array | None
    bounds: Array | None


def find_calibration(det: Any) -> Calibration | None:
    """Calibration of a detector or of a part of it; None if no images were held out."""
    known = find_attribute(det, "calibration_scores_")
    if known is None:
        return None
    order = np.argsort(known, kind="stable")
    scores = np.asarray(known, dtype=np.float64)[order]
    units = find_attribute(det, "calibration_units_")
    groups = None if units is None else np.asarray(units)[order]
    # A threshold flags what is strictly below it: one score more than those below has its p-value.
    rates = conformal_p_values(scores, [-np.inf, *scores], groups=groups)
    limits = bounds = None
    if not find_attribute(det, "_is_cross_calibrated", False):
        curve = false_alarm_bound(scores, confidence=CONFIDENCE, groups=groups)
        limits, bounds = curve.threshold, curve.bound
    return Calibration(scores, groups, round(1 / rates[0]) - 1, rates, limits, bounds)
