"""Calibration scores and their units, checked and sorted."""

from __future__ import annotations

from typing import Any

import numpy as np


def sorted_calibration(scores: Any) -> np.ndarray:
    """Calibration scores, checked and sorted."""
    known = np.asarray(scores, dtype=np.float64)
    if known.ndim != 1 or not len(known) or not np.isfinite(known).all():
        raise ValueError(
            f"calibration_scores have shape {known.shape}; pass finite scores of at least one "
            "normal image that the detector has not learned from"
        )
    return np.sort(known)


def checked_scores(scores: Any) -> np.ndarray:
    """New scores, checked."""
    new = np.asarray(scores, dtype=np.float64)
    if new.ndim != 1 or np.isnan(new).any():
        raise ValueError(
            f"scores have shape {new.shape} and {int(np.isnan(new).sum())} of them are NaN; pass "
            "one number for each image"
        )
    return new


def units_of(calibration_scores: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Ascending scores, how many units lie among the first k of them, and how many there are."""
    known = sorted_calibration(calibration_scores)
    if groups is None:
        return known, np.arange(len(known) + 1.0), len(known)
    codes = _group_codes(groups, len(known))
    share = 1 / np.bincount(codes)[codes]
    order = np.argsort(np.asarray(calibration_scores, dtype=np.float64), kind="stable")
    return known, np.concatenate([[0.0], np.cumsum(share[order])]), int(codes.max()) + 1


def lowest_scores(calibration_scores: Any, groups: Any) -> np.ndarray:
    """The scores in ascending order; of each group the lowest one."""
    known = sorted_calibration(calibration_scores)
    if groups is None:
        return known
    scores = np.asarray(calibration_scores, dtype=np.float64)
    codes = _group_codes(groups, len(scores))
    lowest = np.full(codes.max() + 1, np.inf)
    np.minimum.at(lowest, codes, scores)
    return np.sort(lowest)


def _group_codes(groups: Any, n: int) -> np.ndarray:
    values = np.asarray(groups)
    if values.shape != (n,):
        raise ValueError(
            f"groups have shape {values.shape}; pass the group of each of {n} calibration scores"
        )
    return np.unique(values, return_inverse=True)[1]


def name_of_units(groups: Any, n: int) -> str:
    return "image(s)" if groups is None else "group(s)"


def require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not in (0, 1)")
