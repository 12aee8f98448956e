"""Calibration: p-values, thresholds, false-discovery rates and drift tests from scores.

All of them need *calibration scores*: scores of normal images from which no step of the detector
has learned. A new normal image then has every rank among them with equal probability
(split-conformal prediction), for any detector and any images.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, false_discovery_control, ks_2samp, poisson
from sklearn.utils import Bunch

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import CalibrationWarning

__all__ = [
    "benjamini_hochberg",
    "certified_p_values",
    "conformal_p_values",
    "conformal_threshold",
    "drift_test",
    "false_alarm_bound",
    "threshold_bound",
]


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
    known, weight, n_units = _units(calibration_scores, groups)
    rank = np.searchsorted(known, _scores(scores), side="right")
    return (1 + weight[rank]) / (n_units + 1)


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
    rank = np.searchsorted(curve.threshold, _scores(scores), side="right")
    return np.append(curve.bound, 1.0)[rank]


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
    known, weight, n_units = _units(calibration_scores, groups)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not in (0, 1)")
    if confidence is not None:
        return _certified_threshold(calibration_scores, level, groups, confidence)
    # Products such as 0.07 * 100 come out a little above or below.
    is_above = 1 + weight[1:] > level * (n_units + 1) + 1e-9
    if level * (n_units + 1) + 1e-9 < 1:
        needed = math.ceil(1 / level - 1e-9) - 1
        warn_user(
            f"{n_units} calibration {_name_of_units(groups, n_units)} are too few for a "
            f"false-alarm rate of {level:g}: at least {needed} are needed. The threshold is at a "
            f"rate of {1 / (n_units + 1):.3g}. Fit on more, hold out a larger share "
            "(validation_fraction), or ask for a higher rate.",
            CalibrationWarning,
        )
    return float(known[np.argmax(is_above)])


def false_alarm_bound(
    calibration_scores: Any, *, confidence: float = 0.95, groups: Any = None
) -> Bunch:
    """Upper bounds of the false-alarm rate, for every threshold at once.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    confidence : float, default=0.95
        In (0, 1): share of calibration sets in which all bounds hold together.
    groups : array-like of shape (n,) or None, default=None
        As in `conformal_p_values`; a bound is then one for the share of new groups with a flagged
        image.

    Returns
    -------
    curve : Bunch
        - ``threshold``: ndarray of shape (n_units,), float64, ascending calibration scores; with
          `groups`, the lowest score of each.
        - ``estimate``: ndarray of shape (n_units,), the rate of a threshold on average.
        - ``bound``: ndarray of shape (n_units,), the rate that no threshold exceeds, whichever is
          chosen after looking at the curve.

    Raises
    ------
    ValueError
        If `confidence` is out of range, or as `conformal_p_values` does.

    See Also
    --------
    conformal_threshold : One threshold, chosen before; its bound is lower.

    Notes
    -----
    The share of normal images below the k-th of n scores has a Beta(k, n + 1 - k) distribution. All
    bounds are quantiles of these at one local level, which is set so that they hold together with
    the probability `confidence` (a one-sided Berk-Jones band [1]_). That probability is computed
    exactly, by a recursion over the scores.

    References
    ----------
    .. [1] A. Moscovich, B. Nadler and C. Spiegelman, "On the exact Berk-Jones statistics and their
       p-value calculation", Electronic Journal of Statistics 10(2), 2016.

    Examples
    --------
    >>> from skanomaly_vit.calibration import false_alarm_bound
    >>> curve = false_alarm_bound(range(100))
    >>> float(curve.bound[4].round(2))  # of the threshold with 5 % on average
    0.13
    """
    _require_confidence(confidence)
    lowest = _lowest_scores(calibration_scores, groups)
    n = len(lowest)
    k = np.arange(1, n + 1)
    local = _local_level(n, round(confidence, 6))
    return Bunch(threshold=lowest, estimate=k / (n + 1), bound=beta.isf(local, k, n + 1 - k))


@functools.lru_cache(maxsize=16)
def _local_level(n: int, confidence: float) -> float:
    """Level of each bound, so that n of them hold together."""
    k = np.arange(1, n + 1)

    def excess(log_level: float) -> float:
        return _share_below(beta.isf(math.exp(log_level), k, n + 1 - k)) - confidence

    # Together they hold no more often than one of them, and no less often than Bonferroni says.
    single = math.log1p(-confidence)
    return math.exp(brentq(excess, single - math.log(n) - 1e-9, single + 1e-9, xtol=1e-10))


def _share_below(bounds: np.ndarray) -> float:
    """Probability that the k-th smallest of n uniform values is at most bounds[k - 1], for all k.

    Points of a Poisson process of rate n, given that there are n of them, are uniform; their counts
    up to one bound after the other form a Markov chain.
    """
    n = len(bounds)
    counts = np.ones(1)  # probability of each number of points so far
    for k, rate in enumerate(n * np.diff(bounds, prepend=0.0), start=1):
        more = np.arange(int(rate + 12 * math.sqrt(rate)) + 40)  # all but 1e-18 of the probability
        counts = np.convolve(counts, poisson.pmf(more, rate))[: n + 1]
        counts[:k] = 0.0  # fewer than k: the k-th lies beyond its bound
    none_after = math.exp(-n * (1 - bounds[-1]))
    return float(counts[n] * none_after / poisson.pmf(n, n))


def threshold_bound(
    calibration_scores: Any, threshold: float, *, confidence: float = 0.95, groups: Any = None
) -> float:
    """Upper bound of the false-alarm rate of one threshold.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    threshold : float
        Images strictly below it are flagged. The bound holds if its rank among the calibration
        scores was chosen before looking at them, as `conformal_threshold` does.
    confidence : float, default=0.95
        In (0, 1): share of calibration sets in which the bound holds.
    groups : array-like of shape (n,) or None, default=None
        As in `conformal_p_values`; the bound is then one for the share of new groups with a flagged
        image, and holds for thresholds that were set with a `confidence`.

    Returns
    -------
    bound : float
        In (0, 1]; 1 above all calibration scores.

    Raises
    ------
    ValueError
        If `confidence` is out of range, or as `conformal_p_values` does.

    See Also
    --------
    false_alarm_bound : Bounds that allow a choice of the threshold afterwards, and are higher.

    Notes
    -----
    With k - 1 scores below the threshold, the share of normal images below it is at most a
    Beta(k, n + 1 - k) variable, whose quantile is the bound (order statistics, [1]_).

    References
    ----------
    .. [1] V. Vovk, "Conditional Validity of Inductive Conformal Predictors", Machine Learning 92,
       2013, proposition 2.

    Examples
    --------
    >>> from skanomaly_vit.calibration import threshold_bound
    >>> round(threshold_bound(range(99), 4.0), 3)  # 5 % on average
    0.09
    """
    _require_confidence(confidence)
    lowest = _lowest_scores(calibration_scores, groups)
    k = 1 + int(np.searchsorted(lowest, threshold, side="left"))
    return 1.0 if k > len(lowest) else float(beta.ppf(confidence, k, len(lowest) + 1 - k))


def units_needed(level: float, confidence: float) -> int:
    """Fewest units for which some threshold keeps `level` with this confidence."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-level))


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not in (0, 1)")


def _certified_threshold(
    calibration_scores: Any, level: float, groups: Any, confidence: float
) -> float:
    _require_confidence(confidence)
    lowest = _lowest_scores(calibration_scores, groups)
    n = len(lowest)
    k = np.arange(1, n + 1)
    holds = beta.cdf(level, k, n + 1 - k) >= confidence
    if not holds[0]:
        needed = units_needed(level, confidence)
        raise ValueError(
            f"a false-alarm rate of at most {level:g} with a confidence of {confidence:g} takes at "
            f"least {needed} calibration {_name_of_units(groups, needed)}, and there are {n}. Pass "
            "more normal images (calibrate), a higher rate, or a lower confidence."
        )
    return float(lowest[np.flatnonzero(holds)[-1]])


def _lowest_scores(calibration_scores: Any, groups: Any) -> np.ndarray:
    """The scores in ascending order; of each group the lowest one."""
    known = _calibration(calibration_scores)
    if groups is None:
        return known
    scores = np.asarray(calibration_scores, dtype=np.float64)
    codes = _group_codes(groups, len(scores))
    lowest = np.full(codes.max() + 1, np.inf)
    np.minimum.at(lowest, codes, scores)
    return np.sort(lowest)


def _units(calibration_scores: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Ascending scores, how many units lie among the first k of them, and how many there are."""
    known = _calibration(calibration_scores)
    if groups is None:
        return known, np.arange(len(known) + 1.0), len(known)
    codes = _group_codes(groups, len(known))
    share = 1 / np.bincount(codes)[codes]
    order = np.argsort(np.asarray(calibration_scores, dtype=np.float64), kind="stable")
    return known, np.concatenate([[0.0], np.cumsum(share[order])]), int(codes.max()) + 1


def _group_codes(groups: Any, n: int) -> np.ndarray:
    values = np.asarray(groups)
    if values.shape != (n,):
        raise ValueError(
            f"groups have shape {values.shape}; pass the group of each of {n} calibration scores"
        )
    return np.unique(values, return_inverse=True)[1]


def _name_of_units(groups: Any, n: int) -> str:
    return "image(s)" if groups is None else "group(s)"


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
          a probability of at most `a`, on average over calibration sets and for images that are
          drawn independently of each other; see Notes.
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

    Notes
    -----
    A deployment uses one calibration set every day. If batches are larger than that set, the way in
    which the set happened to fall decides: some deployments then get an alarm on most days and
    others never do. Compare batches of about the size of the calibration set. Images of one lot or
    video are not independent: a batch of a single lot moves though nothing has.

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
    # Above a calibration score, the remaining ones are exchangeable with new scores. Of scores that
    # are equal to it, none counts on either side.
    n_left_out = math.floor(anomaly_share * (len(known) + 1) + 1e-9)
    cut = known[n_left_out - 1] if n_left_out else -np.inf
    kept, expected = new[new > cut], known[known > cut]
    if not len(kept) or not len(expected):
        warn_user(
            f"{len(kept)} of {len(new)} images and {len(expected)} calibration images are "
            "left to compare; there is no telling whether anything moved.",
            CalibrationWarning,
        )
        return Bunch(p_value=1.0, statistic=0.0, direction="lower", n_compared=len(kept))
    # With ties the exact distribution, which holds for continuous scores, is no better than the
    # asymptotic one; both are conservative then.
    both = np.concatenate([kept, expected])
    method = "auto" if len(np.unique(both)) == len(both) else "asymp"
    found = ks_2samp(kept, expected, method=method)
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
