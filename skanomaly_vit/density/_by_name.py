"""Registry of densities: a new one is a class, and a line here."""

from __future__ import annotations

from skanomaly_vit.density._base import StandardizedDensity
from skanomaly_vit.density._excess import ExcessDensity
from skanomaly_vit.density._gaussian import GaussianDensity
from skanomaly_vit.density._knn import KNNDensity
from skanomaly_vit.density._mixture import GaussianMixtureDensity
from skanomaly_vit.density._whitened_knn import WhitenedKNNDensity

DENSITIES: dict[str, type[StandardizedDensity]] = {
    "gaussian": GaussianDensity,
    "gmm": GaussianMixtureDensity,
    "knn": KNNDensity,
    "whitened_knn": WhitenedKNNDensity,
    "excess": ExcessDensity,
}
