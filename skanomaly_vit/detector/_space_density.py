"""The density of one feature space: fitted, and its scores of rows of features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from skanomaly_vit._caching.memory import LRUCache
from skanomaly_vit._utils.blas import one_blas_thread
from skanomaly_vit._utils.compat import validate_parameter_constraints
from skanomaly_vit._utils.composition import seed_estimator
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit.density._base import MomentDensity, StandardizedDensity
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import Kind, Statistics
from skanomaly_vit.density._whitening import axes_of, whiten

#: A search fits the same PCA for every number of blocks.
_recent_pcas: LRUCache[PCA] = LRUCache(2**26)


#: Scores of rows of features by a density.
Score: TypeAlias = Callable[[Any, np.ndarray], np.ndarray]


def fit_whitened(
    density: str | BaseEstimator,
    rows: Rows,
    variance: float | None,
    *,
    seed: int,
    remember: bool = False,
) -> tuple[Any, Statistics | None]:
    """Fit a new scorer behind a PCA that keeps a share of the variance; None is no PCA.

    Parameters
    ----------
    density : str or estimator
    rows : Rows
    variance : float or None
    seed : int
        See `fit_density`.
    remember : bool
        Whether later fits in this process are likely to see the same features.

    Returns
    -------
    scorer : estimator
    statistics : Statistics or None
        Of the rows; None without a PCA.
    """
    if variance is None:
        return fit_density(density, rows, seed=seed), None
    statistics = Statistics.of_shards(rows, Kind.COVARIANCE)
    pca = _find_pca(statistics, variance, remember)
    return fit_density(density, rows, seed=seed, pca=pca, statistics=statistics), statistics


def fit_density(
    density: str | BaseEstimator,
    rows: Rows,
    *,
    seed: int,
    pca: PCA | None = None,
    statistics: Statistics | None = None,
) -> Any:
    """Fit a new scorer, behind a whitening PCA if one is given.

    Parameters
    ----------
    density : str or estimator
        A name in `DENSITIES`, or an estimator to clone. An estimator from elsewhere gets all rows
        in one array.
    rows : Rows
        Features of the normal images.
    seed : int
        Replaces every ``random_state=None`` of the scorer.
    pca : PCA or None
    statistics : Statistics or None
        Statistics of the rows; only with a PCA.

    Returns
    -------
    scorer : estimator
        With ``score_samples``.
    """
    scorer = DENSITIES[density]() if isinstance(density, str) else clone(density)
    seed_estimator(scorer, seed)
    if isinstance(scorer, StandardizedDensity):
        validate_parameter_constraints(
            scorer._parameter_constraints,
            scorer.get_params(deep=False),
            caller_name=type(scorer).__name__,
        )
    if pca is None or statistics is None:
        return _fit_to_rows(scorer, rows)
    if isinstance(scorer, MomentDensity):
        scorer._fit_statistics(statistics.projected(axes_of(pca)))
    else:
        _fit_to_rows(scorer, rows.map(pca.transform, pca.n_components_))
    return Pipeline([("pca", pca), ("density", scorer)])


def _fit_to_rows(scorer: Any, rows: Rows) -> Any:
    if isinstance(scorer, StandardizedDensity):
        return scorer._fit_rows(rows)
    return scorer.fit(rows.gather())


def _find_pca(statistics: Statistics, variance: float, remember: bool) -> PCA:
    """Whitening PCA of statistics; with `remember`, a copy of a recent one of equal statistics."""
    if not remember:
        return whiten(statistics, variance)
    sums = statistics.covariance().tobytes() + statistics.mean.tobytes()
    key = combine(statistics.n_samples, sums, variance)
    pca = _recent_pcas.get(key)
    if pca is None:
        pca = whiten(statistics, variance)
        _recent_pcas.put(key, pca, pca.components_.nbytes)
    return copy.deepcopy(pca)


def score_new(scorer: Any, rows: np.ndarray) -> np.ndarray:
    """Scores of images that a density has not learned from."""
    scores: np.ndarray = scorer.score_samples(rows)
    return scores


def score_left_out(scorer: Any, rows: np.ndarray) -> np.ndarray:
    """Scores of training images that are left out, if the density can leave them out."""
    if isinstance(scorer, Pipeline):
        transformed = scorer[:-1].transform(rows) if len(scorer) > 1 else rows
        return score_left_out(scorer[-1], transformed)
    scores: np.ndarray = getattr(scorer, "score_left_out", scorer.score_samples)(rows)
    return scores


def score_rows(scorer: Any, rows: np.ndarray, score: Score) -> np.ndarray:
    """Scores of rows (n, n_features), float64, each rounded as it is among many others."""
    with one_blas_thread(rows.size):
        raw = np.asarray(score(scorer, _padded(rows)), dtype=np.float64)
    return raw[: len(rows)]


#: Smallest scale of a log-density, in deviations of a Gaussian's log-density.
_LEAST = 0.5


def least_scale(scorer: Any) -> float:
    """Smallest scale of the scores of a density; 0 if their unit is not known.

    The log-density of a Gaussian in d dimensions has a deviation of sqrt(d / 2). If the training
    images score alike, since they are equal or have copies, that is the scale, not rounding.
    """
    density = scorer[-1] if isinstance(scorer, Pipeline) else scorer
    if not isinstance(density, StandardizedDensity):
        return 0.0
    return _LEAST * float(np.sqrt(density.n_features_in_ / 2))


def location_and_scale(scores: np.ndarray, least: float) -> tuple[float, float]:
    location, scale = float(np.mean(scores)), max(float(np.std(scores)), least)
    rounding = len(scores) * np.finfo(np.float64).eps * float(np.abs(scores).max())
    return location, scale if scale > rounding else 1.0


#: Products of fewer rows round differently from those of many: 1 row (a vector to BLAS) in a
#: Gaussian, up to 4 in the neighbor search.
_FEW_ROWS = 64


def _padded(rows: np.ndarray) -> np.ndarray:
    """Pad rows, so that a score rounds as it does among many others."""
    n_more = _FEW_ROWS - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], n_more, axis=0)]) if n_more > 0 else rows
