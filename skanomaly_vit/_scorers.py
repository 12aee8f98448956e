"""A density in each feature space, and one score out of both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from skanomaly_vit.density import GaussianDensity, GaussianMixtureDensity, KNNDensity

DENSITIES: dict[str, type[BaseEstimator]] = {
    "gaussian": GaussianDensity,
    "gmm": GaussianMixtureDensity,
    "knn": KNNDensity,
}


#: Values in a matrix below which BLAS is kept to one thread.
_SMALL = 2**22


def one_blas_thread(features: np.ndarray) -> AbstractContextManager[Any]:
    """Keep BLAS to one thread while densities see few features.

    On small matrices its threads and those of torch, which go on waiting for work after a pass of
    the network, fight over the cores: twice the time of a search that finds all in `memory`.
    """
    return threadpool_limits(1, user_api="blas") if features.size < _SMALL else nullcontext()


def make_density(density: str | BaseEstimator, seed: int, pca_variance: float | None) -> Any:
    """Make a new, unfitted scorer, behind a whitening PCA if `pca_variance` is given.

    Parameters
    ----------
    density : str or estimator
        A name in `DENSITIES`, or an estimator, which is cloned.
    seed : int
        Becomes every ``random_state`` of the scorer that is ``None``.
    pca_variance : float or None
        Share of the variance that the PCA keeps.

    Returns
    -------
    scorer : estimator
        With ``fit`` and ``score_samples``.
    """
    scorer = DENSITIES[density]() if isinstance(density, str) else clone(density)
    unseeded = {
        name: seed
        for name, value in scorer.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    }
    scorer.set_params(**unseeded)
    if pca_variance is None:
        return scorer
    pca = PCA(pca_variance, whiten=True, svd_solver="full")
    return Pipeline([("pca", pca), ("density", scorer)])


def require_spread(features: np.ndarray) -> None:
    """Refuse features, one row an image, that no density can be fitted to."""
    # The same image twice differs by rounding, in float32 some 1e-7 of its features.
    if np.allclose(features, features[0], rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"All {len(features)} images that the densities learn from are alike to the backbone; "
            "normal images that do not vary have no density. Pass at least two that differ."
        )


def fit_fusion(
    fusion: str, densities: Mapping[str, Any], embedded: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Location and scale by which each space's score is standardised before they are added."""
    unchanged = dict.fromkeys(densities, (0.0, 1.0))
    if fusion == "product":
        return unchanged
    scores = score_spaces(densities, unchanged, embedded)
    return {space: _location_and_scale(values) for space, values in scores.items()}


def _location_and_scale(scores: np.ndarray) -> tuple[float, float]:
    scale = float(np.std(scores))
    return float(np.mean(scores)), scale if scale > 0 else 1.0


def score_spaces(
    densities: Mapping[str, Any],
    fusion: Mapping[str, tuple[float, float]],
    embedded: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Score of each image in each space, float64 of shape (n_images,), higher = more normal."""
    scores = {}
    for space, density in densities.items():
        location, scale = fusion[space]
        raw = np.asarray(density.score_samples(embedded[space]), dtype=np.float64)
        scores[space] = (raw - location) / scale
    return scores


def sum_spaces(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """One score an image: the logarithm of the product of the likelihoods."""
    return np.sum(list(scores.values()), axis=0)
