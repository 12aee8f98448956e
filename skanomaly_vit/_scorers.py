"""A density in each feature space, and one score out of both."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from skanomaly_vit._digests import combine
from skanomaly_vit._recent import RecentlyUsed
from skanomaly_vit._recipes import DISCREPANCY, PRETRAINED
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.density import (
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
)

DENSITIES: dict[str, type[BaseEstimator]] = {
    "gaussian": GaussianDensity,
    "gmm": GaussianMixtureDensity,
    "knn": KNNDensity,
    "excess": ExcessDensity,
}


#: A search fits the same PCA for every number of blocks.
_recent_pcas: RecentlyUsed[PCA] = RecentlyUsed(2**26)

#: Values in a matrix below which BLAS is kept to one thread.
_SMALL = 2**22


def one_blas_thread(features: np.ndarray) -> AbstractContextManager[Any]:
    """Keep BLAS to one thread while densities see few features.

    On small matrices its threads and those of torch, which go on waiting for work after a pass of
    the network, fight over the cores: twice the time of a search that finds all in `memory`.
    """
    if features.size >= _SMALL:
        return nullcontext()
    return _thread_pools().limit(limits=1, user_api="blas")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The libraries with threads, which take longer to find than densities to fit."""
    return ThreadpoolController()


def fit_scorers(
    embedded: Mapping[str, np.ndarray],
    spaces: Collection[str],
    split: tuple[np.ndarray, np.ndarray],
    *,
    density: Any,
    pca_variance: float | None,
    fusion: str,
    contamination: float,
    seed: int,
    remember: bool,
) -> tuple[dict[str, Any], dict[str, tuple[float, float]], np.ndarray | None, float]:
    """Fit densities and fusion on the training images, and the threshold on the held-out ones.

    Parameters
    ----------
    embedded : mapping of str to ndarray of shape (n_images, n_features), float64
        Space -> features.
    spaces : collection of str
        Those that count.
    split : tuple of (ndarray of int, ndarray of int)
        Images to learn from, and held-out ones; without any, the threshold is a plain quantile of
        the scores of the first.
    density : str, estimator or dict of str to these
        For all spaces, or for each.
    pca_variance : float or None
        Of the PCA in the pre-trained space.
    fusion : {"product", "standardized"}
    contamination : float
        Share of normal images that may be flagged.
    seed, remember
        See `fit_density`.

    Returns
    -------
    density : dict of str to estimator
    fusion : dict of str to (float, float)
        See `fit_fusion`.
    calibration_scores : ndarray of shape (n_held_out,), float64, or None
        Without any held out, None.
    offset : float
    """
    train, held_out = split
    require_spread(embedded[PRETRAINED][train])
    learned = {space: values[train] for space, values in embedded.items()}
    fitted = {
        space: fit_density(
            density[space] if isinstance(density, dict) else density,
            learned[space],
            seed=seed,
            pca_variance=pca_variance if space == PRETRAINED else None,
            remember=remember,
        )
        for space in spaces
    }
    scales = fit_fusion(fusion, fitted, learned)
    if not len(held_out):
        scores = sum_spaces(score_spaces(fitted, scales, learned))
        return fitted, scales, None, float(np.percentile(scores, 100.0 * contamination))
    unseen = {space: values[held_out] for space, values in embedded.items()}
    scores = sum_spaces(score_spaces(fitted, scales, unseen))
    return fitted, scales, scores, conformal_threshold(scores, contamination)


def by_space(features: np.ndarray, discrepancies: np.ndarray) -> dict[str, np.ndarray]:
    """Name the features after their spaces, in float64."""
    return {
        PRETRAINED: features.astype(np.float64, copy=False),
        DISCREPANCY: discrepancies.astype(np.float64, copy=False),
    }


def fit_density(
    density: str | BaseEstimator,
    features: np.ndarray,
    *,
    seed: int,
    pca_variance: float | None,
    remember: bool,
) -> Any:
    """Fit a new scorer, behind a whitening PCA if `pca_variance` is given.

    Parameters
    ----------
    density : str or estimator
        A name in `DENSITIES`, or an estimator, which is cloned.
    features : ndarray of shape (n_images, n_features), float64
        Of the normal images.
    seed : int
        Becomes every ``random_state`` of the scorer that is ``None``.
    pca_variance : float or None
        Share of the variance that the PCA keeps.
    remember : bool
        Whether the same features are likely to come again, in this process.

    Returns
    -------
    scorer : estimator
        With ``score_samples``.
    """
    scorer = DENSITIES[density]() if isinstance(density, str) else clone(density)
    unseeded = {
        name: seed
        for name, value in scorer.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    }
    scorer.set_params(**unseeded)
    if pca_variance is None:
        return scorer.fit(features)
    pca = _recall_pca(features, pca_variance) if remember else _fit_pca(features, pca_variance)
    return Pipeline([("pca", pca), ("density", scorer.fit(pca.transform(features)))])


def make_pca(variance: float) -> PCA:
    """A whitening PCA that keeps a share of the variance."""
    return PCA(variance, whiten=True, svd_solver="full")


def _fit_pca(features: np.ndarray, variance: float) -> PCA:
    return make_pca(variance).fit(features)


def _recall_pca(features: np.ndarray, variance: float) -> PCA:
    key = combine(features.shape, features.tobytes(), variance)
    pca = _recent_pcas.get(key)
    if pca is None:
        pca = _fit_pca(features, variance)
        _recent_pcas.put(key, pca, pca.components_.nbytes)
    return copy.deepcopy(pca)


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


#: Products of fewer rows round otherwise than those of many: seen with 1 row (a vector to BLAS) in
#: a Gaussian, with up to 4 in the search for neighbours.
_FEW_ROWS = 64


def score_spaces(
    densities: Mapping[str, Any],
    fusion: Mapping[str, tuple[float, float]],
    embedded: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Score of each image in each space, float64 of shape (n_images,), higher = more normal."""
    scores = {}
    for space, density in densities.items():
        location, scale = fusion[space]
        rows = embedded[space]
        raw = np.asarray(density.score_samples(_padded(rows)), dtype=np.float64)[: len(rows)]
        scores[space] = (raw - location) / scale
    return scores


def _padded(rows: np.ndarray) -> np.ndarray:
    """So many rows that a score rounds as it does among many others."""
    n_more = _FEW_ROWS - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], n_more, axis=0)]) if n_more > 0 else rows


def sum_spaces(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """One score an image: the logarithm of the product of the likelihoods."""
    return np.sum(list(scores.values()), axis=0)
