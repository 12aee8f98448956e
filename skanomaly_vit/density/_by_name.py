"""The densities by their names."""

from __future__ import annotations

from sklearn.base import BaseEstimator

from skanomaly_vit.density._excess import ExcessDensity
from skanomaly_vit.density._gaussian import GaussianDensity
from skanomaly_vit.density._knn import KNNDensity
from skanomaly_vit.density._mixture import GaussianMixtureDensity

DENSITIES: dict[str, type[BaseEstimator]] = {
    "gaussian": GaussianDensity,
    "gmm": GaussianMixtureDensity,
    "knn": KNNDensity,
    "excess": ExcessDensity,
}
