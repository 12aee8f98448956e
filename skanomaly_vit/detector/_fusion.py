"""Densities in each feature space, and their fusion into one score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED, Embedded
from skanomaly_vit._caching.memory import LRUCache
from skanomaly_vit._images.tiles import worst_rows
from skanomaly_vit._images.units import IMAGE, UNIT
from skanomaly_vit._utils.blas import one_blas_thread
from skanomaly_vit._utils.compat import validate_parameter_constraints
from skanomaly_vit._utils.composition import seed_estimator
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.density._base import MomentDensity, StandardizedDensity
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import Kind, Statistics
from skanomaly_vit.density._whitening import axes_of, whiten
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import FitSummary, n_images

#: A search fits the same PCA for every number of blocks.
_recent_pcas: LRUCache[PCA] = LRUCache(2**26)


def fit_densities(
    store: FeatureStore,
    spaces: Collection[str],
    split: tuple[np.ndarray, np.ndarray],
    *,
    density: Any,
    pca_variance: float | None,
    fusion: str,
    false_alarms: FalseAlarms,
    seed: int,
    remember: bool,
) -> FittedDensities:
    """Fit densities and fusion on the training images, and the threshold on the held-out ones.

    Parameters
    ----------
    store : FeatureStore
        Features of all images.
    spaces : collection of str
        Spaces that contribute to the score.
    split : tuple of (ndarray of int, ndarray of int)
        Images to learn from, and held-out ones. Without held-out ones, the threshold is a plain
        quantile of the learned images' scores.
    density : str, estimator or dict of str to these
        One for all spaces, or one for each.
    pca_variance : float or None
        Variance that the PCA of the pre-trained space keeps; None is no PCA.
    fusion : {"product", "standardized"}
    false_alarms : FalseAlarms
    seed : int
        See `fit_density`.
    remember : bool
        Whether later fits in this process are likely to see the same features.
    """
    train, held_out = map(store.mask, split)
    views = [space for space in spaces if space != DISCREPANCY]
    require_spread([store.rows(view, train) for view in views or [store.first_view]])
    fitted, statistics = {}, {}
    for space in spaces:
        pca, rows = None, store.rows(space, train)
        if pca_variance is not None and space in views:
            statistics[space] = Statistics.of_shards(rows, Kind.COVARIANCE)
            pca = _find_pca(statistics[space], pca_variance, remember)
        kind = DISCREPANCY if space == DISCREPANCY else PRETRAINED
        fitted[space] = fit_density(
            density[kind] if isinstance(density, dict) else density,
            rows,
            seed=seed,
            pca=pca,
            statistics=statistics.get(space),
        )
    summary = FitSummary.of(store, train, held_out, statistics)
    return calibrate(
        fitted,
        summary,
        lambda: store.embedded(train),
        store.embedded(held_out),
        fusion=fusion,
        false_alarms=false_alarms,
    )


@dataclass(frozen=True)
class FalseAlarms:
    """Rate of false alarms that a threshold keeps.

    Attributes
    ----------
    rate : float
        Share of normal images that may be flagged.
    confidence : float or None
        As `conformal_threshold` takes it.
    """

    rate: float
    confidence: float | None = None

    def threshold(self, scores: np.ndarray, groups: np.ndarray | None) -> float:
        """Threshold by the scores of calibration images."""
        return conformal_threshold(scores, self.rate, groups=groups, confidence=self.confidence)


@dataclass(frozen=True)
class FittedDensities:
    """Fitted densities, their fusion and threshold, and a summary for updates.

    Attributes
    ----------
    density : dict of str to estimator
        The scorer of each space.
    fusion : dict of str to (float, float)
        Location and scale that standardize each space's score before the sum; of the scores that
        training images have when left out.
    calibration_scores : ndarray of shape (n_held_out,), float64, or None
        None without held-out images.
    calibration_units : ndarray of shape (n_held_out,), float64, or None
        Ids of their units; None if they are not known, or without held-out images.
    offset : float
    summary : FitSummary
    """

    density: dict[str, Any]
    fusion: dict[str, tuple[float, float]]
    calibration_scores: np.ndarray | None
    calibration_units: np.ndarray | None
    offset: float
    summary: FitSummary


def calibrate(
    density: dict[str, Any],
    summary: FitSummary,
    learned: Callable[[], Iterable[Embedded]],
    unseen: Iterable[Embedded],
    *,
    fusion: str,
    false_alarms: FalseAlarms,
    weights: Mapping[str, float] = {},
) -> FittedDensities:
    """Compute scale and threshold of densities from learned and unseen images.

    Parameters
    ----------
    density : dict of str to estimator
    summary : FitSummary
    learned : callable
        Begins a pass over the features of images that the densities learned from: gives an iterable
        of shards, dicts of str to ndarray.
    unseen : iterable of dict of str to ndarray
        Shards of features of other images.
    fusion : {"product", "standardized"}
    false_alarms : FalseAlarms
    weights : mapping of str to float
        Factors of the standardized score of each space; 1 for others.
    """
    scales = dict.fromkeys(density, (0.0, 1.0))
    if fusion == "standardized":
        scales = weighted(left_out_scales(density, learned()), weights)
    if not n_images(summary.held_out):
        total, _ = score_units(density, scales, learned())
        offset = float(np.percentile(total, 100.0 * false_alarms.rate))
        return FittedDensities(density, scales, None, None, offset, summary)
    scores, units = score_units(density, scales, unseen)
    offset = false_alarms.threshold(scores, several_of_a_unit(units))
    return FittedDensities(density, scales, scores, units, offset, summary)


def weighted(
    fusion: Mapping[str, tuple[float, float]], weights: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Units of the scores of spaces, divided by weights: a larger one counts more."""
    return {
        space: (location, scale / weights.get(space, 1.0))
        for space, (location, scale) in fusion.items()
    }


def score_units(
    density: Mapping[str, Any],
    scales: Mapping[str, tuple[float, float]],
    shards: Iterable[Embedded],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of calibration images, and the ids of their units; None if they are not known.

    An image of several tiles has the score of its worst one.
    """
    units: list[np.ndarray] = []
    images: list[np.ndarray] = []

    def noting() -> Iterator[Embedded]:
        for embedded in shards:
            units.append(embedded.get(UNIT, np.empty((0, 1)))[:, 0])
            images.append(embedded.get(IMAGE, np.empty((0, 1)))[:, 0])
            yield embedded

    scores = sum_spaces(score_shards(density, scales, noting()))
    ids, owners = np.concatenate(units), np.concatenate(images)
    if len(owners) == len(scores):
        rows = worst_rows(scores, owners)
        scores, ids = scores[rows], ids[rows] if len(ids) == len(owners) else ids
    return scores, ids if len(ids) == len(scores) else None


def several_of_a_unit(units: np.ndarray | None) -> np.ndarray | None:
    """The units of images, if any of them has several; None also if they are not known."""
    return units if units is not None and len(np.unique(units)) < len(units) else None


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


def require_spread(views: Sequence[Rows]) -> None:
    """Reject features, one row per image, that vary in no view."""
    if any(map(_varies, views)):
        return
    raise ValueError(
        f"All {views[0].shape[0]} images that the densities learn from are alike to the backbone; "
        "normal images that do not vary have no density. Pass at least two that differ."
    )


def _varies(rows: Rows) -> bool:
    first = None
    for shard in rows:
        first = shard[0] if first is None else first
        # Rounding makes equal images differ, in float32 by some 1e-7 of their features.
        if not np.allclose(shard, first, rtol=1e-5, atol=1e-5):
            return True
    return False


#: Weight of the standardized discrepancy space; the pre-trained space, all views together, has 1.
#: Students have learned from the training images, whose errors vary less than those of new ones.
DISCREPANCY_WEIGHT = 0.5


def left_out_scales(
    densities: Mapping[str, Any], learned: Iterable[Embedded]
) -> dict[str, tuple[float, float]]:
    """Location and scale of the scores of training images, each left out in turn.

    Scores by a density that has learned from the image itself are higher than those of new
    images, and vary less; their deviation would overrate a density that has learned from few.
    """
    scores = _collect(densities, learned, _score_left_out)
    scales = {
        space: _location_and_scale(values, _least_scale(densities[space]))
        for space, values in scores.items()
    }
    views = [space for space in scores if space != DISCREPANCY]
    if not views:
        return scales
    # All views together vary as one space does.
    together = sum_spaces({view: _scaled(scores[view], scales[view]) for view in views})
    weights = dict.fromkeys(views, 1 / max(1.0, float(np.std(together))))
    weights[DISCREPANCY] = DISCREPANCY_WEIGHT
    return {
        space: (location, scale / weights[space]) for space, (location, scale) in scales.items()
    }


def _score_left_out(scorer: Any, rows: np.ndarray) -> np.ndarray:
    """Scores of training images that are left out, if the density can leave them out."""
    if isinstance(scorer, Pipeline):
        transformed = scorer[:-1].transform(rows) if len(scorer) > 1 else rows
        return _score_left_out(scorer[-1], transformed)
    score = getattr(scorer, "score_left_out", scorer.score_samples)
    return score(rows)


#: Smallest scale of a log-density, in deviations of a Gaussian's log-density.
_LEAST = 0.5


def _least_scale(scorer: Any) -> float:
    """Smallest scale of the scores of a density; 0 if their unit is not known.

    The log-density of a Gaussian in d dimensions has a deviation of sqrt(d / 2). If the training
    images score alike, since they are equal or have copies, that is the scale, not rounding.
    """
    density = scorer[-1] if isinstance(scorer, Pipeline) else scorer
    if not isinstance(density, StandardizedDensity):
        return 0.0
    return _LEAST * float(np.sqrt(density.n_features_in_ / 2))


def _location_and_scale(scores: np.ndarray, least: float) -> tuple[float, float]:
    location, scale = float(np.mean(scores)), max(float(np.std(scores)), least)
    rounding = len(scores) * np.finfo(np.float64).eps * float(np.abs(scores).max())
    return location, scale if scale > rounding else 1.0


def _scaled(scores: np.ndarray, units: tuple[float, float]) -> np.ndarray:
    return (scores - units[0]) / units[1]


#: Products of fewer rows round differently from those of many: 1 row (a vector to BLAS) in a
#: Gaussian, up to 4 in the neighbor search.
_FEW_ROWS = 64


def score_shards(
    densities: Mapping[str, Any],
    fusion: Mapping[str, tuple[float, float]],
    shards: Iterable[Embedded],
) -> dict[str, np.ndarray]:
    """Score of each image in each space, float64 of shape (n_images,), higher = more normal."""
    raw = _collect(densities, shards, lambda density, rows: density.score_samples(rows))
    return {space: _scaled(values, fusion[space]) for space, values in raw.items()}


def _collect(
    densities: Mapping[str, Any],
    shards: Iterable[Embedded],
    score: Callable[[Any, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """What a function gives for each density and its rows, shard by shard."""
    scores: dict[str, list[np.ndarray]] = {space: [] for space in densities}
    for embedded in shards:
        for space, density in densities.items():
            rows = embedded[space]
            with one_blas_thread(rows.size):
                raw = np.asarray(score(density, _padded(rows)), dtype=np.float64)
            scores[space].append(raw[: len(rows)])
    return {
        space: np.concatenate(parts) if parts else np.empty(0) for space, parts in scores.items()
    }


def _padded(rows: np.ndarray) -> np.ndarray:
    """Pad rows, so that a score rounds as it does among many others."""
    n_more = _FEW_ROWS - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], n_more, axis=0)]) if n_more > 0 else rows


def sum_spaces(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """One score per image: the sum of its scores in all spaces."""
    return np.sum(list(scores.values()), axis=0)
