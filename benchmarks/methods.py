"""The methods that are compared: the detector, its variants, and baselines."""

from __future__ import annotations

from typing import Any

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.baselines import BASELINES, make_baseline

#: The densities of the paper, which the ablations of the paper vary.
GAUSSIANS: dict[str, Any] = {"density": "gaussian", "pca_variance": 0.9, "fusion": "product"}

#: Name -> what sets a variant of the detector apart from its default.
VARIANTS: dict[str, dict[str, Any]] = {
    "transformaly": {},
    "pretrained": {"feature_spaces": "pretrained"},
    "discrepancy": {"feature_spaces": "discrepancy"},
    "blocks1": {"n_blocks": 1},
    "blocks3": {"n_blocks": 3},
    "blocks5": {"n_blocks": 5},
    "gaussians": GAUSSIANS,
    "gaussians-pretrained": GAUSSIANS | {"feature_spaces": "pretrained"},
    "gaussians-discrepancy": GAUSSIANS | {"feature_spaces": "discrepancy"},
    "gaussians-pca85": GAUSSIANS | {"pca_variance": 0.85},
    "gaussians-pca95": GAUSSIANS | {"pca_variance": 0.95},
    "gaussians-no-pca": GAUSSIANS | {"pca_variance": None},
    "gaussians-no-pca-standardized": {"density": "gaussian"},
    "gmm": GAUSSIANS | {"density": "gmm"},
    "knn": GAUSSIANS | {"density": "knn"},
    "block-students": {"student": "block"},
    "block-students-gaussians": GAUSSIANS | {"student": "block"},
    "paper": {"recipe": "paper"},
}

METHODS = [*VARIANTS, *BASELINES]


def make_method(name: str, **shared: Any) -> Any:
    """Make a detector; `shared` are the backbone, its image size, memory and seed."""
    if name in VARIANTS:
        return TransformalyDetector(**VARIANTS[name], **shared)
    return make_baseline(name, **shared)
