"""Evaluation of outlier detectors on labelled images: a fitted one, two of them, or class by class.

`evaluate_fitted` measures a fitted detector, and `compare_fitted` two of them. `one_vs_rest` fits
one for each class; its settings are those of the papers in the field: *unimodal*, one class is
normal and all others are anomalies, and *multimodal*, one class is the anomaly and all others are
normal.
"""

from skanomaly_vit.evaluation._baselines import BASELINES, NeighborDistance, make_baseline
from skanomaly_vit.evaluation._compared import compare_fitted
from skanomaly_vit.evaluation._confusion import pretraining_confusion
from skanomaly_vit.evaluation._fitted import evaluate_fitted
from skanomaly_vit.evaluation._map_metrics import per_region_overlap, pixel_auroc
from skanomaly_vit.evaluation._one_vs_rest import evaluate, one_vs_rest

__all__ = [
    "BASELINES",
    "NeighborDistance",
    "compare_fitted",
    "evaluate",
    "evaluate_fitted",
    "make_baseline",
    "one_vs_rest",
    "per_region_overlap",
    "pixel_auroc",
    "pretraining_confusion",
]
