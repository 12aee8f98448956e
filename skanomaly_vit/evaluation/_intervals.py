"""Confidence intervals of shares and of areas under ROC curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata

_END = 1e-12


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


def require_confidence(confidence: float) -> float:
    """Return a confidence; a ValueError if it is none."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not in (0, 1); pass 0.95, for example")
    return confidence


def share_interval(n_found: int, n: int, confidence: float) -> Interval:
    """Exact (Clopper-Pearson) interval of a share, n_found of n."""
    found = binomtest(n_found, n).proportion_ci(confidence, method="exact")
    return Interval(float(found.low), float(found.high))


def auroc_interval(auroc: float, n_normal: int, n_anomalies: int, confidence: float) -> Interval:
    """Interval of an AUROC by Newcombe's method 5, which is a score interval.

    It holds the values whose own standard deviation would explain the distance to the measured one.
    Unlike Wald's interval by the same variance (Hanley and McNeil), it has a width at an AUROC of 1
    and does not reach beyond.
    """
    z, n_pairs = float(norm.isf((1 - confidence) / 2)), n_normal * n_anomalies
    others = (n_normal + n_anomalies) / 2 - 1

    def variance(true: float) -> float:
        of_images = others * ((1 - true) / (2 - true) + true / (1 + true))
        return true * (1 - true) * (1 + of_images) / n_pairs

    def excess(true: float) -> float:
        return (true - auroc) ** 2 - z**2 * variance(true)

    # At 0 and 1 the variance is 0, which makes them solutions that say nothing.
    low = 0.0 if auroc <= 0 else brentq(excess, 0.0, min(auroc, 1 - _END))
    high = 1.0 if auroc >= 1 else brentq(excess, max(auroc, _END), 1.0)
    return Interval(float(low), float(high))


def auroc_difference(
    is_anomaly: np.ndarray, old: np.ndarray, new: np.ndarray, confidence: float
) -> tuple[float, Interval, float]:
    """Difference of two AUROCs on the same images, by DeLong's method.

    Parameters
    ----------
    is_anomaly : ndarray of shape (n_images,), bool
    old, new : ndarray of shape (n_images,)
        Scores by both detectors, higher = more normal.
    confidence : float

    Returns
    -------
    difference : float
        AUROC of `new` minus that of `old`.
    interval : Interval
    p_value : float
        Of the hypothesis that both are equal; 1 if no pair of images is ranked differently.
    """
    both = (_components(is_anomaly, scores) for scores in (old, new))
    of_normal, of_anomalies = (after - before for before, after in zip(*both, strict=True))
    difference = float(of_normal.mean())
    variance = _variance_of_mean(of_normal) + _variance_of_mean(of_anomalies)
    deviation = float(np.sqrt(variance))
    if deviation == 0:
        return difference, Interval(difference, difference), 1.0
    half = deviation * float(norm.isf((1 - confidence) / 2))
    p_value = 2 * float(norm.sf(abs(difference) / deviation))
    ends = Interval(max(-1.0, difference - half), min(1.0, difference + half))
    return difference, ends, p_value


def _components(is_anomaly: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each normal image, the share of anomalies that score lower; for each anomaly, of normal.

    Equal scores count half. The mean of either is the AUROC.
    """
    normal, anomalies = scores[~is_anomaly], scores[is_anomaly]
    pooled = rankdata(np.concatenate([normal, anomalies]))
    n_lower = pooled[: len(normal)] - rankdata(normal)
    n_higher = len(normal) - (pooled[len(normal) :] - rankdata(anomalies))
    return n_lower / len(anomalies), n_higher / len(normal)


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
