"""Evaluation of a fitted detector on labelled images: `evaluate_fitted`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.utils import Bunch

from skanomaly_vit._utils.detectors import threshold_of
from skanomaly_vit._utils.labels import AUTO, as_objects
from skanomaly_vit.evaluation._intervals import (
    auroc_interval,
    require_confidence,
    share_interval,
)
from skanomaly_vit.evaluation._labelled import Labelled, gather_labelled

#: Rates of false alarms at which the share of anomalies found is measured.
RATES = (0.01, 0.02, 0.05, 0.1)

#: Of fewer images of a kind, a remark says how little they tell.
_FEW_OF_A_KIND = 10


def evaluate_fitted(
    detector: Any,
    X: Any,
    y: Any,
    *,
    kinds: Any = None,
    anomaly_label: Any = AUTO,
    false_alarm_rates: Sequence[float] = RATES,
    confidence: float = 0.95,
    known_images: str = "raise",
) -> Bunch:
    """Measure a fitted detector on labelled images that it has not seen.

    Parameters
    ----------
    detector : estimator
        A fitted `TransformalyDetector`, `OnnxDetector <skanomaly_vit.onnx.OnnxDetector>` or other
        outlier detector, or a pipeline that ends in one: with ``score_samples`` (higher = more
        normal). Its ``offset_`` is the threshold.
    X : images
        Images of any form that `detector` takes, normal ones and anomalies.
    y : array-like of shape (n_images,)
        Label of each of `X`.
    kinds : array-like of shape (n_images,) or None, default=None
        Kind of defect of each image; those of normal images do not count. ``None`` takes the labels
        in `y`, or ``"anomaly"`` for -1.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
    false_alarm_rates : sequence of float, default=(0.01, 0.02, 0.05, 0.1)
        Shares in (0, 1) of the normal images that may be flagged, at which the share of anomalies
        found is measured.
    confidence : float, default=0.95
        Confidence in (0, 1) of all intervals, each for itself.
    known_images : {"raise", "leave_out"}, default="raise"
        Treatment of images that `detector` has learned from or that set its threshold; their
        content tells. ``"raise"`` raises an error, ``"leave_out"`` measures on the others.

    Returns
    -------
    evaluation : Bunch
        - ``n_normal``, ``n_anomalies``: int, images that count.
        - ``auroc``: float, the area under the ROC curve; ``auroc_interval``: (low, high) [1]_.
        - ``threshold``: float or None; an image that scores below it is flagged. Without one, the
          next four are None.
        - ``n_false_alarms``, ``n_found``: int, normal images and anomalies that are flagged.
        - ``false_alarms``, ``recall``: Bunch of ``share`` (float in [0, 1]) and ``interval``
          ((low, high), exact [2]_).
        - ``at_rates``: Bunch of arrays of shape (n_rates,): ``rate``, ``threshold`` (that keeps the
          rate on these normal images), ``false_alarms`` (the share that it flags) and ``recall``;
          and ``recall_interval`` of shape (n_rates, 2), for a threshold that is given.
        - ``by_kind``: Bunch of ``kind`` (ndarray of the labels, sorted), and arrays of shape
          (n_kinds,): ``n_images``, ``n_found``, ``recall``; and ``recall_interval`` of shape
          (n_kinds, 2). Without a threshold, NaN.
        - ``misses``: ndarray of int, positions in `X` of anomalies that are not flagged, the one
          that looks most normal first; ``alarms``: of normal images that are flagged, the one that
          looks most abnormal first.
        - ``scores``: ndarray of shape (n_images,), float64, higher = more normal; NaN for an image
          that was left out.
        - ``n_left_out``: int.
        - ``remarks``: list of str, what the figures do not tell.

    Raises
    ------
    ValueError
        If `detector` gives no score, a score is not finite, `y` or `kinds` has another length than
        `X`, there are normal images or anomalies only, two copies of an image have different
        labels, the detector knows an image, or a parameter is out of range.

    See Also
    --------
    compare_fitted : Two detectors on the same images.
    evaluate : Fits first.

    Notes
    -----
    The interval of the AUROC is Newcombe's method 5, a score interval with the variance of Hanley
    and McNeil: at an AUROC of 1 on few images it has a width, which DeLong's has not. It takes
    images for independent of each other; copies, and frames of one scene, make it too narrow.

    Only `TransformalyDetector` knows its images. Of other detectors, and of models that older
    versions saved, ``remarks`` says that nothing was checked.

    References
    ----------
    .. [1] R. G. Newcombe, "Confidence intervals for an effect size measure based on the
       Mann-Whitney statistic. Part 2", Statistics in Medicine 25, 2006.
    .. [2] C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated
       in the case of the binomial", Biometrika 26, 1934.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianDensity
    >>> from skanomaly_vit.evaluation import evaluate_fitted
    >>> Z = np.random.RandomState(0).normal(size=(120, 2))  # features do as well as images
    >>> Z[100:] += 4
    >>> density = GaussianDensity().fit(Z[:50])
    >>> evaluation = evaluate_fitted(density, Z[50:], np.repeat([1, -1], [50, 20]))
    >>> evaluation.at_rates.recall
    array([1., 1., 1., 1.])
    """
    require_confidence(confidence)
    rates = checked_rates(false_alarm_rates)
    labelled = gather_labelled([detector], X, y, kinds, anomaly_label, known_images)
    return measure(detector, labelled, rates, confidence)


def measure(detector: Any, labelled: Labelled, rates: np.ndarray, confidence: float) -> Bunch:
    """Measure a detector on images that count; see `evaluate_fitted`."""
    scores = labelled.score(detector)
    found = _measure(
        scores, labelled.is_anomaly, labelled.kinds, threshold_of(detector), rates, confidence
    )
    for name in ("misses", "alarms"):
        found[name] = labelled.kept[found[name]]
    found.scores = np.full(len(labelled.X), np.nan)
    found.scores[labelled.kept] = scores
    found.n_left_out = labelled.n_left_out
    found.remarks = [*labelled.remarks(), *_remarks(found)]
    return found


def _measure(
    scores: np.ndarray,
    is_anomaly: np.ndarray,
    kinds: np.ndarray,
    threshold: float | None,
    rates: np.ndarray,
    confidence: float,
) -> Bunch:
    n_anomalies = int(is_anomaly.sum())
    n_normal = len(scores) - n_anomalies
    auroc = float(roc_auc_score(is_anomaly, -scores))
    # Without a threshold, nothing is flagged and the shares are not told.
    is_flagged = scores < (-np.inf if threshold is None else threshold)
    found = Bunch(
        n_normal=n_normal,
        n_anomalies=n_anomalies,
        auroc=auroc,
        auroc_interval=auroc_interval(auroc, n_normal, n_anomalies, confidence),
        confidence=confidence,
        threshold=threshold,
        n_false_alarms=None,
        n_found=None,
        false_alarms=None,
        recall=None,
        at_rates=_recall_at(scores, is_anomaly, rates, confidence),
        by_kind=_by_kind(is_flagged, is_anomaly, kinds, threshold is not None, confidence),
        misses=_ranked(-scores, is_anomaly & ~is_flagged & (threshold is not None)),
        alarms=_ranked(scores, ~is_anomaly & is_flagged),
    )
    if threshold is not None:
        found.n_false_alarms = int((is_flagged & ~is_anomaly).sum())
        found.n_found = int((is_flagged & is_anomaly).sum())
        found.false_alarms = _share(found.n_false_alarms, n_normal, confidence)
        found.recall = _share(found.n_found, n_anomalies, confidence)
    return found


def _share(n_found: int, n: int, confidence: float) -> Bunch:
    return Bunch(share=n_found / n, interval=share_interval(n_found, n, confidence))


def _recall_at(
    scores: np.ndarray, is_anomaly: np.ndarray, rates: np.ndarray, confidence: float
) -> Bunch:
    """Share of the anomalies found by the highest threshold that keeps each rate."""
    normal, anomalies = np.sort(scores[~is_anomaly]), scores[is_anomaly]
    # Products such as 0.07 * 100 come out a little above or below.
    thresholds = normal[np.floor(rates * len(normal) + 1e-9).astype(int)]
    n_found = [int((anomalies < threshold).sum()) for threshold in thresholds]
    return Bunch(
        rate=rates,
        threshold=thresholds,
        false_alarms=np.array([(normal < threshold).mean() for threshold in thresholds]),
        recall=np.array(n_found) / len(anomalies),
        recall_interval=_intervals(n_found, [len(anomalies)] * len(rates), confidence),
    )


def _by_kind(
    is_flagged: np.ndarray,
    is_anomaly: np.ndarray,
    kinds: np.ndarray,
    has_threshold: bool,
    confidence: float,
) -> Bunch:
    names = sorted(set(kinds[is_anomaly]), key=str)
    masks = [is_anomaly & np.array([kind == name for kind in kinds]) for name in names]
    n_images = np.array([mask.sum() for mask in masks])
    n_found = np.array([(mask & is_flagged).sum() for mask in masks])
    recall, intervals = n_found / n_images, _intervals(n_found, n_images, confidence)
    if not has_threshold:
        recall, intervals = np.full_like(recall, np.nan), np.full_like(intervals, np.nan)
    return Bunch(
        kind=as_objects(names),
        n_images=n_images,
        n_found=n_found,
        recall=recall,
        recall_interval=intervals,
    )


def _intervals(n_found: Iterable[int], n: Iterable[int], confidence: float) -> np.ndarray:
    pairs = zip(n_found, n, strict=True)
    return np.array([share_interval(int(k), int(of), confidence) for k, of in pairs])


def _ranked(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Positions of the chosen values, the smallest first."""
    positions = np.flatnonzero(chosen)
    return positions[np.argsort(values[positions], kind="stable")]


def checked_rates(rates: Sequence[float]) -> np.ndarray:
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not ((values > 0) & (values < 1)).all():
        raise ValueError(
            f"false_alarm_rates={rates!r}; pass shares in (0, 1), such as [0.01, 0.05]"
        )
    return values


def _remarks(found: Bunch) -> Iterator[str]:
    """What figures of so few images do not tell, in sentences."""
    rates = found.at_rates.rate
    too_low = rates[rates * found.n_normal < 1 - 1e-9]
    if len(too_low):
        needed = int(np.ceil(1 / too_low.min() - 1e-9))
        yield (
            f"{found.n_normal} normal images are too few to measure at {100 * too_low.min():g} % "
            f"false alarms, which takes {needed}: the share found is that without any false alarm."
        )
    few = found.by_kind.kind[found.by_kind.n_images < _FEW_OF_A_KIND]
    if len(few):
        yield (
            f"Fewer than {_FEW_OF_A_KIND} images of {', '.join(map(str, few))}: the share found "
            "among new ones may lie anywhere in its interval."
        )
