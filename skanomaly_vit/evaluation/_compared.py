"""Comparison of two fitted detectors on the same images: `compare_fitted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.utils import Bunch

from skanomaly_vit._utils.labels import AUTO
from skanomaly_vit.evaluation._fitted import RATES, checked_rates, measure
from skanomaly_vit.evaluation._intervals import auroc_difference, require_confidence
from skanomaly_vit.evaluation._labelled import Labelled, gather_labelled


def compare_fitted(
    old: Any,
    new: Any,
    X: Any,
    y: Any,
    *,
    kinds: Any = None,
    anomaly_label: Any = AUTO,
    false_alarm_rates: Sequence[float] = RATES,
    confidence: float = 0.95,
    known_images: str = "raise",
) -> Bunch:
    """Compare two fitted detectors on the same images, pair by pair.

    Both see each image, so that the comparison is sharper than that of two intervals: an image that
    is hard for both tells nothing about their difference.

    Parameters
    ----------
    old, new : estimator
        Fitted detectors, as `evaluate_fitted` takes them.
    X : images
        Images of any form that both take, normal ones and anomalies.
    y : array-like of shape (n_images,)
        Label of each of `X`.
    kinds : array-like of shape (n_images,) or None, default=None
        Kind of defect of each image, as in `evaluate_fitted`.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
    false_alarm_rates : sequence of float, default=(0.01, 0.02, 0.05, 0.1)
        As in `evaluate_fitted`.
    confidence : float, default=0.95
        Confidence in (0, 1) of all intervals, each for itself.
    known_images : {"raise", "leave_out"}, default="raise"
        Treatment of images that one of them knows, as in `evaluate_fitted`: ``"leave_out"``
        compares on the images that neither knows.

    Returns
    -------
    comparison : Bunch
        - ``old``, ``new``: Bunch, what `evaluate_fitted` measures of each.
        - ``auroc``: Bunch of ``difference`` (new minus old), ``interval`` ((low, high)) and
          ``p_value``, by DeLong's method [1]_.
        - ``false_alarms``, ``found``: Bunch of ``only_old`` and ``only_new`` (ndarray of int,
          positions in `X` of normal images, or of anomalies, that one of them flags and the other
          does not) and ``p_value``, by the exact test of McNemar [2]_. None without thresholds.

    Raises
    ------
    ValueError
        As `evaluate_fitted` does.

    See Also
    --------
    evaluate_fitted : One detector.

    References
    ----------
    .. [1] E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, "Comparing the Areas under Two or
       More Correlated Receiver Operating Characteristic Curves", Biometrics 44, 1988.
    .. [2] Q. McNemar, "Note on the sampling error of the difference between correlated proportions
       or percentages", Psychometrika 12, 1947.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianDensity, KNNDensity
    >>> from skanomaly_vit.evaluation import compare_fitted
    >>> Z = np.random.RandomState(0).normal(size=(120, 2))  # features do as well as images
    >>> Z[100:] += 2
    >>> old, new = KNNDensity().fit(Z[:50]), GaussianDensity().fit(Z[:50])
    >>> comparison = compare_fitted(old, new, Z[50:], np.repeat([1, -1], [50, 20]))
    >>> bool(comparison.auroc.p_value < 0.05)
    False
    """
    require_confidence(confidence)
    rates = checked_rates(false_alarm_rates)
    labelled = gather_labelled([old, new], X, y, kinds, anomaly_label, known_images)
    found = [measure(detector, labelled, rates, confidence) for detector in (old, new)]
    scores = [each.scores[labelled.kept] for each in found]
    difference, interval, p_value = auroc_difference(
        labelled.is_anomaly, scores[0], scores[1], confidence
    )
    auroc = Bunch(difference=difference, interval=interval, p_value=p_value)
    comparison = Bunch(old=found[0], new=found[1], auroc=auroc, false_alarms=None, found=None)
    if all(each.threshold is not None for each in found):
        flagged = [values < each.threshold for values, each in zip(scores, found, strict=True)]
        comparison.false_alarms = _discordant(labelled, ~labelled.is_anomaly, *flagged)
        comparison.found = _discordant(labelled, labelled.is_anomaly, *flagged)
    return comparison


def _discordant(labelled: Labelled, chosen: np.ndarray, old: np.ndarray, new: np.ndarray) -> Bunch:
    """Chosen images that one detector flags and the other does not, and McNemar's test of them."""
    only_old, only_new = (labelled.kept[chosen & each] for each in (old & ~new, new & ~old))
    n = len(only_old) + len(only_new)
    p_value = float(binomtest(len(only_new), n).pvalue) if n else 1.0
    return Bunch(only_old=only_old, only_new=only_new, p_value=p_value)
