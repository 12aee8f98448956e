"""Thresholds at a rate of false alarms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import beta

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.calibration._units import (
    lowest_scores,
    name_of_units,
    require_confidence,
    units_of,
)
from skanomaly_vit.exceptions import CalibrationWarning


def conformal_threshold(
    calibration_scores: Any,
    level: float,
    *,
    groups: Any = None,
    confidence: float | None = None,
) -> float:
    """Score below which the conformal p-value is at most `level`.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    level : float
        In (0, 1): share of normal images that may be flagged, on average over calibration sets.
    groups : array-like of shape (n,) or None, default=None
        As in `conformal_p_values`.
    confidence : float or None, default=None
        In (0, 1): the share is at most `level` not on average, but in this share of calibration
        sets. With `groups` it is then the share of new *groups* with a flagged image.

    Returns
    -------
    threshold : float
        One of the calibration scores; images strictly below it are flagged.

    Raises
    ------
    ValueError
        If `level` or `confidence` is out of range, if there are too few units for `confidence`,
        or as `conformal_p_values` does.

    Warns
    -----
    CalibrationWarning
        If there are too few units for that level: fewer than ``1 / level - 1``. The threshold is
        then the lowest score, which flags a share of ``1 / (n + 1)``.

    See Also
    --------
    conformal_p_values : The same, image by image.
    false_alarm_bound : The certificate of every threshold at once.

    Notes
    -----
    With `confidence` the threshold is the k-th smallest score with the largest k for which a
    Beta(k, n + 1 - k) variable is at most `level` with that probability: the share of normal
    images below the k-th of n exchangeable scores is such a variable (order statistics, [1]_).
    It takes ``log(1 - confidence) / log(1 - level)`` units: 299 for 1 % at 95 %.

    References
    ----------
    .. [1] V. Vovk, "Conditional Validity of Inductive Conformal Predictors", Machine Learning 92,
       2013, proposition 2.

    Examples
    --------
    >>> from skanomaly_vit.calibration import conformal_threshold
    >>> conformal_threshold(range(99), 0.05)
    4.0
    """
    known, weight, n_units = units_of(calibration_scores, groups)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not in (0, 1)")
    if confidence is not None:
        return _certified_threshold(calibration_scores, level, groups, confidence)
    # Products such as 0.07 * 100 come out a little above or below.
    is_above = 1 + weight[1:] > level * (n_units + 1) + 1e-9
    if level * (n_units + 1) + 1e-9 < 1:
        needed = math.ceil(1 / level - 1e-9) - 1
        warn_user(
            f"{n_units} calibration {name_of_units(groups, n_units)} are too few for a "
            f"false-alarm rate of {level:g}: at least {needed} are needed. The threshold is at a "
            f"rate of {1 / (n_units + 1):.3g}. Fit on more, hold out a larger share "
            "(validation_fraction), or ask for a higher rate.",
            CalibrationWarning,
        )
    return float(known[np.argmax(is_above)])


def units_needed(level: float, confidence: float) -> int:
    """Fewest units for which some threshold keeps `level` with this confidence."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-level))


def _certified_threshold(
    calibration_scores: Any, level: float, groups: Any, confidence: float
) -> float:
    require_confidence(confidence)
    lowest = lowest_scores(calibration_scores, groups)
    n = len(lowest)
    k = np.arange(1, n + 1)
    holds = beta.cdf(level, k, n + 1 - k) >= confidence
    if not holds[0]:
        needed = units_needed(level, confidence)
        raise ValueError(
            f"a false-alarm rate of at most {level:g} with a confidence of {confidence:g} takes at "
            f"least {needed} calibration {name_of_units(groups, needed)}, and there are {n}. Pass "
            "more normal images (calibrate), a higher rate, or a lower confidence."
        )
    return float(lowest[np.flatnonzero(holds)[-1]])
