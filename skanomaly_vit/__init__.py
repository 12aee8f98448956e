"""Image anomaly detection for scikit-learn users: Transformaly on frozen Vision Transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skanomaly_vit._backbones import WeightsUnavailableError
    from skanomaly_vit._checkpoints import CheckpointWarning
    from skanomaly_vit._container import ModelFileError
    from skanomaly_vit._halving import OutOfMemoryWarning
    from skanomaly_vit._unreadable import UnreadableImageWarning
    from skanomaly_vit.cache import CacheWarning, DiskCache
    from skanomaly_vit.density import (
        ExcessDensity,
        GaussianDensity,
        GaussianMixtureDensity,
        KNNDensity,
    )
    from skanomaly_vit.detector import TransformalyDetector
    from skanomaly_vit.distillation import BlockDistillation
    from skanomaly_vit.features import ViTFeatures
    from skanomaly_vit.tuned_features import CompactFeatures, MeanShiftedFeatures

__version__ = "0.1.0"

__all__ = [
    "BlockDistillation",
    "CacheWarning",
    "CheckpointWarning",
    "CompactFeatures",
    "DiskCache",
    "ExcessDensity",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "KNNDensity",
    "MeanShiftedFeatures",
    "ModelFileError",
    "OutOfMemoryWarning",
    "TransformalyDetector",
    "UnreadableImageWarning",
    "ViTFeatures",
    "WeightsUnavailableError",
    "__version__",
]

#: Public names are imported on first use, so that `import skanomaly_vit` does not import torch.
_ROOMS = {
    "BlockDistillation": "distillation",
    "CacheWarning": "cache",
    "CheckpointWarning": "_checkpoints",
    "CompactFeatures": "tuned_features",
    "DiskCache": "cache",
    "ExcessDensity": "density",
    "GaussianDensity": "density",
    "GaussianMixtureDensity": "density",
    "KNNDensity": "density",
    "MeanShiftedFeatures": "tuned_features",
    "ModelFileError": "_container",
    "OutOfMemoryWarning": "_halving",
    "TransformalyDetector": "detector",
    "UnreadableImageWarning": "_unreadable",
    "ViTFeatures": "features",
    "WeightsUnavailableError": "_backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
