"""Methods to compare: the detector, its variants, and baselines."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from patch_neighbors import PatchNeighbors
from sklearn.base import BaseEstimator
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline

from skanomaly_vit import ExcessDensity, GaussianDensity, TransformalyDetector, ViTFeatures
from skanomaly_vit.evaluation import BASELINES, make_baseline

#: The densities of the paper, which the ablations of the paper vary.
GAUSSIANS: dict[str, Any] = {
    "density": "gaussian", "pca_variance": 0.9, "fusion": "product", "views": ("pooled",),
    "pooling": "mean", "n_blocks": 10,
}  # fmt: skip

#: Name -> parameters of a variant of the detector that differ from its defaults.
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
    "gaussians-no-pca-standardized": GAUSSIANS | {"pca_variance": None, "fusion": "standardized"},
    "gmm": GAUSSIANS | {"density": "gmm"},
    "knn": GAUSSIANS | {"density": "knn"},
    "whitened-knn": {
        "feature_spaces": "pretrained",
        "views": ("pooled",),
        "density": "whitened_knn",
    },
    "block-students": {"student": "block"},
    "block-students-gaussians": GAUSSIANS | {"student": "block"},
    "paper": {"recipe": "paper", "n_blocks": 10},
}

#: Weights and parameters of the two spaces of the default recipe before it had several views.
FORMER: list[tuple[float, dict[str, Any]]] = [
    (1.0, {"feature_spaces": "pretrained", "views": ("pooled",),
           "density": GaussianDensity(shrinkage="ledoit_wolf")}),
    (0.25, {"feature_spaces": "discrepancy", "pooling": "mean", "n_blocks": 10,
            "density": ExcessDensity()}),
]  # fmt: skip

#: Name -> a baseline with other parameters. At the authors' learning rate, 1e-5, as few images as
#: here do not move the features of MSAD; of 1e-4, 1e-3 and 1e-2 the last has the smallest loss on
#: held-out normal images.
BASELINE_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "msad-1e-2": ("msad", {"learning_rate": 1e-2}),
}

#: Name -> module, class and parameters of a detector of PyOD, on the features of the backbone.
PYOD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pyod-knn": ("knn", "KNN", {"method": "mean"}),
    "pyod-lof": ("lof", "LOF", {}),
    "pyod-ecod": ("ecod", "ECOD", {}),
    "pyod-copod": ("copod", "COPOD", {}),
    "pyod-hbos": ("hbos", "HBOS", {}),
}

METHODS = [*VARIANTS, "former", *BASELINES, *BASELINE_VARIANTS, "lof", *PYOD, "patch-neighbors",
           "patchcore"]  # fmt: skip


class SumOfDetectors(BaseEstimator):
    """The weighted sum of the scores of detectors, each of which standardizes its own."""

    def __init__(self, detectors: list[TransformalyDetector], weights: list[float]) -> None:
        self.detectors = detectors
        self.weights = weights

    def fit(self, X: Any, y: Any = None) -> SumOfDetectors:
        for detector in self.detectors:
            detector.fit(X)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return np.dot(self.weights, [detector.score_samples(X) for detector in self.detectors])


class PyODScorer(BaseEstimator):
    """A detector of PyOD with scikit-learn's sign: PyOD's scores are high for anomalies."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fit(self, X: np.ndarray, y: Any = None) -> PyODScorer:
        module, detector, parameters = PYOD[self.name]
        self.detector_ = getattr(import_module(f"pyod.models.{module}"), detector)(**parameters)
        self.detector_.fit(X)
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return -self.detector_.decision_function(X)


def name_in(dtype: str, method: str) -> str:
    """Name of a method in a table, which says the type of its backbone unless that is float32."""
    return method if dtype == "float32" else f"{method} in {dtype}"


def make_method(name: str, *, dtype: str = "float32", **shared: Any) -> Any:
    """Make a detector; `dtype` and `shared` are the parameters of its features."""
    if dtype != "float32":  # which tuned features do not know
        shared["dtype"] = dtype
    if name in VARIANTS:
        return TransformalyDetector(**VARIANTS[name], **shared)
    if name == "former":
        detectors = [TransformalyDetector(**parameters, **shared) for _, parameters in FORMER]
        return SumOfDetectors(detectors, [weight for weight, _ in FORMER])
    if name == "lof":
        return make_pipeline(ViTFeatures(**shared), LocalOutlierFactor(novelty=True))
    if name == "patch-neighbors":
        return PatchNeighbors(**shared)
    if name in PYOD:
        return make_pipeline(ViTFeatures(**shared), PyODScorer(name))
    if name == "patchcore":
        return import_module("patchcore").PatchCoreDetector(**shared)  # needs anomalib
    baseline, parameters = BASELINE_VARIANTS.get(name, (name, {}))
    return make_baseline(baseline, **parameters, **shared)
