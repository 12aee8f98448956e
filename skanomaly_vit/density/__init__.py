"""Density estimators that score feature vectors by log-density.

Each one standardises the features, models the standardised values and reports the log-density in
the units of the input: discrepancy features of different transformer blocks differ by orders of
magnitude, and no model here should care.
"""

from skanomaly_vit.density._excess import ExcessDensity
from skanomaly_vit.density._gaussian import GaussianDensity
from skanomaly_vit.density._knn import KNNDensity
from skanomaly_vit.density._mixture import GaussianMixtureDensity

__all__ = ["ExcessDensity", "GaussianDensity", "GaussianMixtureDensity", "KNNDensity"]
