"""Upper bounds of the rate of false alarms."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, poisson
from sklearn.utils import Bunch

from skanomaly_vit.calibration._units import lowest_scores, require_confidence


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
    require_confidence(confidence)
    lowest = lowest_scores(calibration_scores, groups)
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
    require_confidence(confidence)
    lowest = lowest_scores(calibration_scores, groups)
    k = 1 + int(np.searchsorted(lowest, threshold, side="left"))
    return 1.0 if k > len(lowest) else float(beta.ppf(confidence, k, len(lowest) + 1 - k))
