"""Calibration: p-values, thresholds, false-discovery rates and drift tests from scores.

All of them need *calibration scores*: scores of normal images from which no step of the detector
has learned. A new normal image then has every rank among them with equal probability
(split-conformal prediction), for any detector and any images.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, ks_2samp
from sklearn.utils import Bunch

from skanomaly_vit.exceptions import CalibrationWarning

__all__ = ["benjamini_hochberg", "conformal_p_values", "conformal_threshold", "drift_test"]


def conformal_p_values(calibration_scores: Any, scores: Any) -> np.ndarray:
    """Split-conformal p-values of images among normal ones [1]_.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        Scores of normal images that the detector has not learned from. Higher = more normal.
    scores : array-like of shape (m,)
        Scores of new images.

    Returns
    -------
    p_values : ndarray of shape (m,), float64
        In [1 / (n + 1), 1]; small = abnormal. For a normal image that is exchangeable with those
        of the calibration, P(p <= a) <= a for every a.

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
    ``p = (1 + number of calibration scores <= score) / (n + 1)``. The guarantee is on average over
    calibration sets: with one set, the share of normal images below ``a`` varies around `a` as a
    beta distribution does, with a standard deviation of about ``sqrt(a * (1 - a) / n)``.

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
    known = _calibration(calibration_scores)
    rank = np.searchsorted(known, _scores(scores), side="right")
    return (1 + rank) / (len(known) + 1)


def conformal_threshold(calibration_scores: Any, level: float) -> float:
    """Score below which the conformal p-value is at most `level`.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    level : float
        In (0, 1): share of normal images that may be flagged, on average over calibration sets.

    Returns
    -------
    threshold : float
        One of the calibration scores; images strictly below it are flagged.

    Raises
    ------
    ValueError
        If `level` is out of range, or as `conformal_p_values` does.

    Warns
    -----
    CalibrationWarning
        If there are too few scores for that level: fewer than ``1 / level - 1``. The threshold is
        then the lowest score, which flags a share of ``1 / (n + 1)``.

    See Also
    --------
    conformal_p_values : The same, image by image.

    Examples
    --------
    >>> from skanomaly_vit.calibration import conformal_threshold
    >>> conformal_threshold(range(99), 0.05)
    4.0
    """
    known = _calibration(calibration_scores)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not in (0, 1)")
    # Products such as 0.07 * 100 come out a little above or below.
    rank = math.floor(level * (len(known) + 1) + 1e-9)
    if rank == 0:
        needed = math.ceil(1 / level - 1e-9) - 1
        warnings.warn(
            f"{len(known)} calibration image(s) are too few for a false-alarm rate of {level:g}: "
            f"at least {needed} are needed. The threshold is at a rate of "
            f"{1 / (len(known) + 1):.3g}. Fit on more images, hold out a larger share "
            "(validation_fraction), or ask for a higher rate.",
            CalibrationWarning,
            stacklevel=2,
        )
    return float(known[max(rank, 1) - 1])


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


def drift_test(calibration_scores: Any, scores: Any, *, anomaly_share: float = 0.05) -> Bunch:
    """Test whether a batch of mostly normal images has moved away from the calibration images.

    A two-sample Kolmogorov-Smirnov test of the scores or, equivalently, the p-values. Anomalies
    have small p-values, so the test leaves out the smallest on both sides: a few anomalies are no
    drift.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    scores : array-like of shape (m,)
        Scores of a batch that was drawn without regard to scores.
    anomaly_share : float, default=0.05
        In [0, 1): the test leaves out p-values up to this.

    Returns
    -------
    test : Bunch
        - ``p_value``: float in [0, 1]; small = drift. If nothing has moved, it is below `a` with
          a probability of at most `a`.
        - ``statistic``: float in [0, 1], the largest distance between both distributions.
        - ``direction``: ``"lower"`` if the batch scores lower at that distance, else ``"higher"``.
        - ``n_compared``: int, number of compared images of the batch.

    Raises
    ------
    ValueError
        If `anomaly_share` is out of range, or as `conformal_p_values` does.

    Warns
    -----
    CalibrationWarning
        If nothing is left to compare on one side; ``p_value`` is then 1.

    See Also
    --------
    benjamini_hochberg : Flags the abnormal images of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.calibration import drift_test
    >>> rng = np.random.default_rng(0)
    >>> known = rng.normal(size=200)
    >>> bool(drift_test(known, rng.normal(size=100)).p_value < 0.01)
    False
    >>> drift_test(known, rng.normal(-1, 1, size=100)).direction
    'lower'
    """
    if not 0 <= anomaly_share < 1:
        raise ValueError(f"anomaly_share={anomaly_share!r} is not in [0, 1)")
    known = _calibration(calibration_scores)
    new = _scores(scores)
    # Above a calibration score, the remaining ones are exchangeable with new scores.
    n_left_out = math.floor(anomaly_share * (len(known) + 1) + 1e-9)
    kept = new[new > known[n_left_out - 1]] if n_left_out else new
    expected = known[n_left_out:]
    if not len(kept) or not len(expected):
        warnings.warn(
            f"{len(kept)} of {len(new)} images and {len(expected)} calibration images are "
            "left to compare; there is no telling whether anything moved.",
            CalibrationWarning,
            stacklevel=2,
        )
        return Bunch(p_value=1.0, statistic=0.0, direction="lower", n_compared=len(kept))
    found = ks_2samp(kept, expected)
    return Bunch(
        p_value=float(found.pvalue),
        statistic=float(found.statistic),
        # The batch's distribution function is above where its values are smaller.
        direction="lower" if found.statistic_sign > 0 else "higher",
        n_compared=len(kept),
    )


def _calibration(scores: Any) -> np.ndarray:
    """Calibration scores, checked and sorted."""
    known = np.asarray(scores, dtype=np.float64)
    if known.ndim != 1 or not len(known) or not np.isfinite(known).all():
        raise ValueError(
            f"calibration_scores have shape {known.shape}; pass finite scores of at least one "
            "normal image that the detector has not learned from"
        )
    return np.sort(known)


def _scores(scores: Any) -> np.ndarray:
    """New scores, checked."""
    new = np.asarray(scores, dtype=np.float64)
    if new.ndim != 1 or np.isnan(new).any():
        raise ValueError(
            f"scores have shape {new.shape} and {int(np.isnan(new).sum())} of them are NaN; pass "
            "one number for each image"
        )
    return new
