"""Recipes: the values of the parameters that are left at "auto"."""

from __future__ import annotations

from typing import Any

from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED
from skanomaly_vit._utils.labels import is_auto
from skanomaly_vit.density import ExcessDensity, GaussianDensity

#: Recipe -> parameter -> value; the value of `density` is one for each feature space.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "student": "ridge",
        "max_epochs": 3,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "one_cycle",
        "patience": 3,
        "pca_variance": None,
        "density": {
            PRETRAINED: GaussianDensity(shrinkage="ledoit_wolf"),
            DISCREPANCY: ExcessDensity(),
        },
        "fusion": "standardized",
    },
    "paper": {
        "student": "block",
        "max_epochs": 30,
        "learning_rate": 1e-4,
        "learning_rate_schedule": "constant",
        "patience": 30,
        "pca_variance": 0.9,
        "density": {
            PRETRAINED: GaussianDensity(shrinkage=0.0),
            DISCREPANCY: GaussianDensity(shrinkage=0.0),
        },
        "fusion": "product",
    },
}


def resolve(estimator: Any) -> dict[str, Any]:
    """Value of each parameter that recipes are about: the estimator's own, unless it is "auto"."""
    recipe = RECIPES[estimator.recipe]
    given = {name: getattr(estimator, name) for name in recipe}
    return {name: recipe[name] if is_auto(value) else value for name, value in given.items()}
