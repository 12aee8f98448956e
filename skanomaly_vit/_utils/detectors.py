"""Metrics of detectors, and the sign of their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_outlier_detector
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.pipeline import Pipeline


def normality(estimator: Any, X: Any) -> np.ndarray:
    """Score of each sample, higher = more normal."""
    require_normality(estimator)
    if hasattr(estimator, "score_samples"):
        return np.asarray(estimator.score_samples(X))
    return np.asarray(estimator.decision_function(X))


def require_normality(estimator: Any) -> None:
    """Raise if the sign of an estimator's scores is not known."""
    # High means abnormal in other libraries, and classes_[1] for a classifier. Only outlier
    # detectors of scikit-learn are known to mean normal.
    is_known = hasattr(estimator, "__sklearn_tags__") and is_outlier_detector(estimator)
    has_decision = is_known and hasattr(estimator, "decision_function")
    if hasattr(estimator, "score_samples") or has_decision:
        return
    remedy = "; pass novelty=True" if getattr(estimator, "novelty", None) is False else ""
    raise ValueError(
        f"{type(estimator).__name__} is no outlier detector of scikit-learn's kind: it has no "
        f"score_samples, and its decision_function, if any, may be high for anomalies{remedy}"
    )


def threshold_of(estimator: Any) -> float | None:
    """Threshold of `normality` below which a sample is flagged; None if there is none."""
    if not hasattr(estimator, "score_samples"):
        return 0.0  # the threshold of a decision function
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    offset = getattr(last, "offset_", None)
    return None if offset is None else float(offset)


def fpr_at_95_tpr(is_anomaly: np.ndarray, abnormality: np.ndarray) -> float:
    """Share of normal samples flagged at 95 % of the anomalies flagged; smaller is better."""
    fpr, tpr, _ = roc_curve(is_anomaly, abnormality, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= 0.95)])


def _negative_fpr95(is_anomaly: np.ndarray, abnormality: np.ndarray) -> float:
    return -fpr_at_95_tpr(is_anomaly, abnormality)


#: Name -> metric (mask of the anomalies, scores that are high for them); greater is better.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "roc_auc": roc_auc_score,
    "average_precision": average_precision_score,
    "fpr95": _negative_fpr95,
}


def known_metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is not one of {list(METRICS)}")
    return metric
