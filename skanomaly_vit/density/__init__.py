"""Density estimators that score feature vectors by log-density.

Every density standardizes the features, models the standardized values and reports the log-density
in the units of the input. Discrepancy features of different transformer blocks differ by orders of
magnitude; standardizing removes those units.
"""

from skanomaly_vit.density._excess import ExcessDensity
from skanomaly_vit.density._gaussian import GaussianDensity
from skanomaly_vit.density._knn import KNNDensity
from skanomaly_vit.density._mixture import GaussianMixtureDensity
from skanomaly_vit.density._whitened_knn import WhitenedKNNDensity

__all__ = [
    "ExcessDensity",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "KNNDensity",
    "WhitenedKNNDensity",
]
