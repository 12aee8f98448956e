"""Evaluation of outlier detectors on labelled images, class by class, on equal terms.

The two settings are those of the papers in the field: *unimodal*, one class is normal and all
others are anomalies, and *multimodal*, one class is the anomaly and all others are normal.
"""

from skanomaly_vit.evaluation._baselines import BASELINES, NeighborDistance, make_baseline
from skanomaly_vit.evaluation._confusion import pretraining_confusion
from skanomaly_vit.evaluation._map_metrics import per_region_overlap, pixel_auroc
from skanomaly_vit.evaluation._one_vs_rest import evaluate, one_vs_rest

__all__ = [
    "BASELINES",
    "NeighborDistance",
    "evaluate",
    "make_baseline",
    "one_vs_rest",
    "per_region_overlap",
    "pixel_auroc",
    "pretraining_confusion",
]
