"""Recipes: the values of parameters that are "auto"."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch

from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED
from skanomaly_vit._backbone.views import Readout, names_of, parse_views, share_of
from skanomaly_vit._utils.labels import is_auto
from skanomaly_vit.density import ExcessDensity, GaussianDensity, WhitenedKNNDensity
from skanomaly_vit.detector._placed import PlacedDensity
from skanomaly_vit.distillation import BlockDistillation, BlockStudent, RidgeStudent

#: Recipe -> parameter -> value; `density` has a value for each feature space.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "student": RidgeStudent(),
        "n_blocks": 5,
        "views": ("pooled", "pooled:-2", "max_patch", "max_patch:-2"),
        "pooling": "max",
        "pca_variance": None,
        "density": {
            PRETRAINED: WhitenedKNNDensity(whitening_exponent=0.25),
            DISCREPANCY: ExcessDensity(tail="exponential"),
        },
        "fusion": "standardized",
    },
    "paper": {
        "student": BlockStudent(
            max_epochs=30, learning_rate=1e-4, learning_rate_schedule="constant", patience=30
        ),
        "n_blocks": 10,
        "views": ("pooled",),
        "pooling": "mean",
        "pca_variance": 0.9,
        "density": {
            PRETRAINED: GaussianDensity(shrinkage=0.0),
            DISCREPANCY: GaussianDensity(shrinkage=0.0),
        },
        "fusion": "product",
    },
}


def resolve(estimator: Any) -> dict[str, Any]:
    """Value of each parameter of a recipe: the estimator's own, or the recipe's for "auto".

    Views are a tuple of their shortest names.

    Raises
    ------
    ValueError
        If one is no view.
    """
    recipe = RECIPES[estimator.recipe]
    given = {name: getattr(estimator, name) for name in recipe}
    values = {name: recipe[name] if is_auto(value) else value for name, value in given.items()}
    return values | {"views": names_of(parse_views(values["views"]))}


def readout_of(values: dict[str, Any]) -> Readout:
    """What a pass reads out of an image, by the values of a recipe."""
    return Readout(parse_views(values["views"]), share_of(values["pooling"]))


def describe_recipe(
    values: dict[str, Any], densities: dict[str, Any], distillation: BlockDistillation | None
) -> Bunch:
    """Values that a fit used, for `recipe_`; the estimators among them are unfitted."""
    n_blocks = 0 if distillation is None else len(distillation.block_indices_)
    return Bunch(
        n_blocks=n_blocks,
        student=None if distillation is None else distillation._student,
        views=tuple(values["views"]),
        pooling=values["pooling"],
        pca_variance=values["pca_variance"],
        density={space: clone(_density_of(scorer)) for space, scorer in densities.items()},
        fusion=values["fusion"],
    )


def _density_of(scorer: Any) -> Any:
    """Density of a fitted scorer, with or without a PCA before it; of places, one of them."""
    if isinstance(scorer, PlacedDensity):
        scorer = next(iter(scorer.densities.values()))
    return scorer[-1] if isinstance(scorer, Pipeline) and "pca" in scorer.named_steps else scorer
