"""Statistics of a report: scores, threshold, and metrics against labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit._utils.detectors import fpr_at_95_tpr
from skanomaly_vit.report._calibration import CONFIDENCE, Calibration

Array: TypeAlias = np.ndarray[Any, Any]

_BATCHES = 4  # scored between two progress callbacks

_PROBE = 4  # images that reveal the threshold of a detector without offset_


@dataclass(frozen=True)
class Statistic:
    """A number with its name and a note; `key` names one that follows the threshold."""

    name: str
    value: str
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Kind:
    """Images of one label."""

    label: str
    is_anomaly: bool
    n_images: int
    n_flagged: int

    @property
    def share(self) -> str:
        return _percent(self.n_flagged / self.n_images)


def check_detector(det: Any) -> None:
    """Raise unless the detector is fitted, gives scores and has a threshold."""
    what = type(det).__name__
    if isinstance(det, type):
        raise ValueError(f"det is the class {det.__name__}; pass a fitted instance of it")
    if hasattr(det, "fit"):
        check_is_fitted(det)
    if not hasattr(det, "score_samples"):
        raise ValueError(f"{what} has no score_samples; pass an outlier detector that has it")
    if not hasattr(det, "offset_") and not hasattr(det, "decision_function"):
        raise ValueError(
            f"{what} has neither offset_ nor decision_function, so it has no threshold; pass a "
            "detector with a threshold, such as TransformalyDetector"
        )


def score(det: Any, X: Any, n: int, advance: Callable[[int], object]) -> tuple[Array, float]:
    """Score all images; return their scores and the threshold."""
    size = _BATCHES * int(find_attribute(det, "batch_size") or 32)
    parts = []
    for start in range(0, n, size):
        chosen = np.arange(start, min(start + size, n))
        parts.append(np.asarray(det.score_samples(_safe_indexing(X, chosen)), dtype=np.float64))
        if parts[-1].shape != chosen.shape:
            raise ValueError(
                f"{type(det).__name__}.score_samples gave an array of shape {parts[-1].shape} for "
                f"{len(chosen)} images; write_report expects one score per image"
            )
        advance(len(chosen))
    scores = np.concatenate(parts)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(
            f"{type(det).__name__} gave {len(wrong)} of {n} images scores that are not finite, "
            f"first sample {wrong[0]}: {scores[wrong[0]]}"
        )
    return scores, _threshold(det, X, scores)


def _threshold(det: Any, X: Any, scores: Array) -> float:
    """Threshold of the scores; images with lower scores are anomalies."""
    if hasattr(det, "offset_"):
        return float(np.asarray(det.offset_).item())
    few = np.arange(min(_PROBE, len(scores)))
    offsets = scores[few] - np.asarray(det.decision_function(_safe_indexing(X, few)), dtype=float)
    # The batch size changes the last digits of a score.
    if np.ptp(offsets) > 1e-3 * (np.std(scores) + 1e-3 * np.abs(scores).max()):
        raise ValueError(
            f"{type(det).__name__}.decision_function is not score_samples minus a constant, so "
            f"no score is its threshold: {offsets.tolist()} for the first {len(few)} images"
        )
    return float(np.median(offsets))


def summarize(
    scores: Array, offset: float, is_anomaly: Array | None, calibration: Calibration | None
) -> list[Statistic]:
    is_flagged = scores < offset
    n, n_flagged = len(scores), int(is_flagged.sum())
    statistics = [
        Statistic("Images", f"{n:,}"),
        Statistic("Flagged", f"{n_flagged:,}", f"{_percent(n_flagged / n)} of all", "flagged"),
        Statistic("Threshold", f"{offset:.4g}", "flagged below it", "threshold"),
    ]
    if calibration is not None:
        statistics.append(_expect(offset, calibration))
    if is_anomaly is None:
        return statistics
    for name, key, kind in (
        ("Anomalies flagged", "found", is_anomaly),
        ("Normal flagged", "false", ~is_anomaly),
    ):
        if kind.any():
            found = int((is_flagged & kind).sum())
            of = f"of {kind.sum():,} by label, {_percent(found / kind.sum())}"
            statistics.append(Statistic(name, f"{found:,}", of, key))
    if is_anomaly.any() and not is_anomaly.all():
        area = roc_auc_score(is_anomaly, -scores)
        precision = average_precision_score(is_anomaly, -scores)
        fpr = _percent(fpr_at_95_tpr(is_anomaly, -scores))
        statistics += [
            Statistic("AUROC", f"{area:.3f}", "1 = perfect, 0.5 = chance"),
            Statistic("Average precision", f"{precision:.3f}", f"chance: {is_anomaly.mean():.3f}"),
            Statistic("FPR at 95 % TPR", fpr, "0 = perfect"),
        ]
    return statistics


def _expect(offset: float, calibration: Calibration) -> Statistic:
    """Expected share of false alarms of a threshold, and its bound."""
    n_below = int(np.searchsorted(calibration.scores, offset, side="left"))
    note = "of normal images, on average"
    if calibration.limits is not None and calibration.bounds is not None:
        k = int(np.searchsorted(calibration.limits, offset, side="left"))
        bound = calibration.bounds[k] if k < len(calibration.bounds) else 1.0
        whose = "normal images" if calibration.groups is None else "new groups"
        note = f"at most {_percent(bound)} of {whose}, in {100 * CONFIDENCE:g} % of deployments"
    return Statistic(
        "False alarms expected", _percent(calibration.rates[n_below]), note, "expected"
    )


def count_kinds(
    scores: Array, offset: float, labels: list[str], is_anomaly: Array | None
) -> list[Kind]:
    """Images and flagged ones of each label, anomalies first."""
    if is_anomaly is None:
        return []
    names, is_flagged = np.array(labels, dtype=object), scores < offset
    kinds = []
    for label in sorted(set(labels)):
        of = names == label
        anomalous = bool(is_anomaly[of][0])
        kinds.append(Kind(label, anomalous, int(of.sum()), int(is_flagged[of].sum())))
    return sorted(kinds, key=lambda kind: not kind.is_anomaly)


def certify(det: Any) -> list[Statistic]:
    """False-alarm rate of the threshold, and the images that it rests on, where they are known."""
    find = find_attribute(det, "_certificate")
    if find is None:
        return []
    certificate = find()
    return [
        Statistic("False alarms", certificate.describe_rate()),
        Statistic("Calibration", certificate.describe_calibration()),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def has_maps(det: Any) -> bool:
    """Whether a detector draws anomaly maps; one may have the method and no patches for it."""
    return hasattr(det, "anomaly_map") and find_attribute(det, "_normal_patches", True) is not None


def remark(det: Any, is_anomaly: Array | None, calibration: Calibration | None) -> list[str]:
    """Notes on labels of one kind, and on missing maps and calibration scores."""
    notes = []
    if calibration is None:
        notes.append(
            f"{type(det).__name__} has no scores of held-out normal images, so there are no "
            "p-values, and nobody knows how many false alarms to expect."
        )
    if is_anomaly is not None and (is_anomaly.all() or not is_anomaly.any()):
        kind = "anomalies" if is_anomaly.all() else "normal images"
        notes.append(f"By their labels all are {kind}, so there is no AUROC.")
    if not has_maps(det):
        notes.append(f"{type(det).__name__} gives no anomaly maps; the report shows images only.")
    return notes
