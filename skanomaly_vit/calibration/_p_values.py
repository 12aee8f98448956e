"""P-values of scores, and the images that they flag in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit.calibration._bounds import false_alarm_bound
from skanomaly_vit.calibration._units import checked_scores, units_of


def conformal_p_values(calibration_scores: Any, scores: Any, *, groups: Any = None) -> np.ndarray:
    """Split-conformal p-values of images among normal ones [1]_.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        Scores of normal images that the detector has not learned from. Higher = more normal.
    scores : array-like of shape (m,)
        Scores of new images.
    groups : array-like of shape (n,) or None, default=None
        Group (camera, lot, day) of each calibration score. Groups are then the units, and the
        guarantee is for an image of a *new* group. ``None`` takes each image for a unit.

    Returns
    -------
    p_values : ndarray of shape (m,), float64
        In [1 / (n + 1), 1] with n units; small = abnormal. For a normal image that is exchangeable
        with those of the calibration, P(p <= a) <= a for every a.

    Raises
    ------
    ValueError
        If there are no calibration scores, or scores are not finite numbers in one dimension; new
        scores may be infinite.

    See Also
    --------
    conformal_threshold : The score at which the p-value reaches a level.
    benjamini_hochberg : Flags a batch by its p-values.

    Notes
    -----
    ``p = (1 + number of calibration scores <= score) / (n + 1)``. With `groups`, a group counts by
    the share of its scores: ``p = (1 + sum of shares) / (n_groups + 1)``. The guarantee is on
    average over calibration sets: with one set, the share of normal images below ``a`` varies
    around `a` as a beta distribution does, with a standard deviation of about
    ``sqrt(a * (1 - a) / n)``.

    References
    ----------
    .. [1] S. Bates, E. Candes, L. Lei, Y. Romano and M. Sesia, "Testing for Outliers with
       Conformal p-values", Annals of Statistics 51, 2023, section 2.

    Examples
    --------
    >>> from skanomaly_vit.calibration import conformal_p_values
    >>> conformal_p_values([1.0, 2.0, 3.0, 4.0], [0.5, 2.5, 9.0])
    array([0.2, 0.6, 1. ])
    """
    return CalibrationScores(calibration_scores, groups).p_values(checked_scores(scores))


class CalibrationScores:
    """Calibration scores, sorted once, for p-values of any number of calls.

    Parameters
    ----------
    calibration_scores, groups
        As in `conformal_p_values`.
    """

    def __init__(self, calibration_scores: Any, groups: Any = None) -> None:
        self._known, self._weight, self._n_units = units_of(calibration_scores, groups)

    @classmethod
    def of(cls, estimator: Any) -> CalibrationScores | None:
        """Those of a detector, or of a part of it that has some; None if no images calibrate."""
        known = find_attribute(estimator, "calibration_scores_")
        if known is None:
            return None
        return cls(known, find_attribute(estimator, "calibration_units_"))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """P-value of each score, float64 of shape (n,); NaN for a score of NaN."""
        rank = np.searchsorted(self._known, scores, side="right")
        return np.where(np.isnan(scores), np.nan, (1 + self._weight[rank]) / (self._n_units + 1))

    def p_value(self, score: float) -> float:
        """P-value of one score."""
        return float(self.p_values(np.array([score]))[0])


def certified_p_values(
    calibration_scores: Any, scores: Any, *, confidence: float = 0.95, groups: Any = None
) -> np.ndarray:
    """P-values that hold for the one calibration set that there is, with a confidence [1]_.

    Those of `conformal_p_values` hold on average over calibration sets: all p-values of one set
    are too small together, or too large. Methods that combine many p-values over time need these.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    scores : array-like of shape (m,)
        Scores of new images.
    confidence : float, default=0.95
        In (0, 1): share of calibration sets for which the p-values are right.
    groups : array-like of shape (n,) or None, default=None
        As in `conformal_p_values`.

    Returns
    -------
    p_values : ndarray of shape (m,), float64
        In (0, 1]; small = abnormal. In a share `confidence` of calibration sets, p-values of normal
        images that are drawn independently are independent, and P(p <= a) <= a for every a. The
        smallest one is that of the first bound of `false_alarm_bound`, about 7 / n at 95 %.

    Raises
    ------
    ValueError
        If `confidence` is out of range, or as `conformal_p_values` does.

    See Also
    --------
    conformal_p_values : Smaller ones, right on average.
    false_alarm_bound : The bounds that these p-values are.

    References
    ----------
    .. [1] S. Bates, E. Candes, L. Lei, Y. Romano and M. Sesia, "Testing for Outliers with
       Conformal p-values", Annals of Statistics 51, 2023, section 3.

    Examples
    --------
    >>> from skanomaly_vit.calibration import certified_p_values
    >>> certified_p_values(range(1000), [-1, 50, 500, 1000]).round(3)
    array([0.007, 0.076, 0.549, 1.   ])
    """
    curve = false_alarm_bound(calibration_scores, confidence=confidence, groups=groups)
    rank = np.searchsorted(curve.threshold, checked_scores(scores), side="right")
    return np.append(curve.bound, 1.0)[rank]


def benjamini_hochberg(p_values: Any, q: float = 0.1) -> np.ndarray:
    """Flag images of a batch so that few of the flagged ones are false alarms [1]_.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        P-values of all images of the batch, including those that look normal.
    q : float, default=0.1
        In (0, 1): the false-discovery rate, the share of false alarms among the flagged images, on
        average over batches and calibration sets.

    Returns
    -------
    is_flagged : ndarray of shape (m,), bool
        True for an alarm.

    Raises
    ------
    ValueError
        If `q` is out of range or a p-value is not in [0, 1].

    See Also
    --------
    conformal_p_values : Their guarantee holds here, although they share a calibration set [2]_.

    Notes
    -----
    With n calibration scores the smallest p-value is ``1 / (n + 1)``: of m images at least
    ``m / ((n + 1) * q)`` must have it before any is flagged.

    References
    ----------
    .. [1] Y. Benjamini and Y. Hochberg, "Controlling the False Discovery Rate", Journal of the
       Royal Statistical Society B 57, 1995.
    .. [2] S. Bates et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 51,
       2023, theorem 2.

    Examples
    --------
    >>> from skanomaly_vit.calibration import benjamini_hochberg
    >>> benjamini_hochberg([0.01, 0.02, 0.5, 0.9], q=0.1)
    array([ True,  True, False, False])
    """
    if not 0 < q < 1:
        raise ValueError(f"q={q!r} is not in (0, 1)")
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all() or values.ndim != 1:
        raise ValueError("p_values have to be numbers in [0, 1], one for each image")
    if not len(values):
        return np.zeros(0, dtype=bool)
    return false_discovery_control(values, method="bh") <= q
