"""The pluggable part: a name or an estimator becomes a density scorer."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator, clone

from skanomaly_vit.density import GaussianDensity, GaussianMixtureDensity, KNNDensity

DENSITIES: dict[str, type[BaseEstimator]] = {
    "gaussian": GaussianDensity,
    "gmm": GaussianMixtureDensity,
    "knn": KNNDensity,
}


def make_density(density: str | BaseEstimator, seed: int) -> Any:
    """A new, unfitted scorer; every ``random_state`` of it that is ``None`` becomes `seed`."""
    scorer = DENSITIES[density]() if isinstance(density, str) else clone(density)
    unseeded = {
        name: seed
        for name, value in scorer.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    }
    return scorer.set_params(**unseeded)
