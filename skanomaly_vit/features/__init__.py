"""Feature extraction: images to vectors, by a frozen backbone or a tuned one."""

from skanomaly_vit.features._compact import CompactFeatures
from skanomaly_vit.features._mean_shifted import MeanShiftedFeatures
from skanomaly_vit.features._vit import ViTFeatures

__all__ = ["CompactFeatures", "MeanShiftedFeatures", "ViTFeatures"]
