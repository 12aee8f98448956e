"""Image anomaly detection for scikit-learn users: Transformaly on frozen Vision Transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skanomaly_vit._utils.version import __version__

if TYPE_CHECKING:
    from skanomaly_vit._caching.disk_cache import DiskCache
    from skanomaly_vit._images.regions import MaskedImages, read_roi
    from skanomaly_vit._utils.progress_bar import ProgressBar
    from skanomaly_vit.density import (
        ExcessDensity,
        GaussianDensity,
        GaussianMixtureDensity,
        KNNDensity,
        WhitenedKNNDensity,
    )
    from skanomaly_vit.detector import TransformalyDetector
    from skanomaly_vit.distillation import BlockDistillation
    from skanomaly_vit.features import CompactFeatures, MeanShiftedFeatures, ViTFeatures

__all__ = [
    "BlockDistillation",
    "CompactFeatures",
    "DiskCache",
    "ExcessDensity",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "KNNDensity",
    "MaskedImages",
    "MeanShiftedFeatures",
    "ProgressBar",
    "TransformalyDetector",
    "ViTFeatures",
    "WhitenedKNNDensity",
    "__version__",
    "read_roi",
]

#: Public names are imported on first use, so that `import skanomaly_vit` does not import torch.
_FOLDERS = {
    "BlockDistillation": "distillation",
    "CompactFeatures": "features",
    "DiskCache": "_caching.disk_cache",
    "ExcessDensity": "density",
    "GaussianDensity": "density",
    "GaussianMixtureDensity": "density",
    "KNNDensity": "density",
    "MaskedImages": "_images.regions",
    "MeanShiftedFeatures": "features",
    "ProgressBar": "_utils.progress_bar",
    "TransformalyDetector": "detector",
    "ViTFeatures": "features",
    "WhitenedKNNDensity": "density",
    "read_roi": "_images.regions",
}


def __getattr__(name: str) -> Any:
    if name not in _FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FOLDERS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
