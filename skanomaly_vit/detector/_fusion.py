"""Densities in each feature space, and their fusion into one score."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED, Embedded
from skanomaly_vit._images.tiles import PLACE, worst_rows
from skanomaly_vit._images.units import IMAGE, UNIT
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import FitSummary, n_images
from skanomaly_vit.detector._placed import PlacedDensity, fit_places, require_tiles
from skanomaly_vit.detector._space_density import (
    Score,
    fit_whitened,
    least_scale,
    location_and_scale,
    score_left_out,
    score_new,
    score_rows,
)


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
    places = store.places(train) if PLACE in store else {}
    if places:
        require_tiles(places, store.places(held_out))
    for space in spaces:
        kind = DISCREPANCY if space == DISCREPANCY else PRETRAINED
        scorer = density[kind] if isinstance(density, dict) else density
        variance = pca_variance if space in views else None
        if places:
            fitted[space] = fit_places(
                scorer,
                {place: store.rows(space, rows) for place, rows in places.items()},
                variance,
                seed=seed,
                standardizes=fusion == "standardized",
            )
            continue
        fitted[space], of_space = fit_whitened(
            scorer, store.rows(space, train), variance, seed=seed, remember=remember
        )
        if of_space is not None:
            statistics[space] = of_space
    summary = FitSummary.of(store, train, held_out, statistics)
    calibrated = calibrate(
        fitted,
        summary,
        lambda: store.embedded(train),
        store.embedded(held_out),
        fusion=fusion,
        false_alarms=false_alarms,
    )
    for scorer in fitted.values():
        if isinstance(scorer, PlacedDensity):
            scorer.forget_statistics()
    return calibrated


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
    """Scores of calibration images, and the ids of their units; None if they are not known."""
    scores, ids = score_images(density, scales, shards)
    return sum_spaces(scores), ids


def score_images(
    density: Mapping[str, Any],
    scales: Mapping[str, tuple[float, float]],
    shards: Iterable[Embedded],
    score: Score = score_new,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Scores of images in each space, and the ids of their units; None if they are not known.

    An image of several tiles has the scores of the one whose sum is lowest.
    """
    units: list[np.ndarray] = []
    images: list[np.ndarray] = []

    def noting() -> Iterator[Embedded]:
        for embedded in shards:
            units.append(embedded.get(UNIT, np.empty((0, 1)))[:, 0])
            images.append(embedded.get(IMAGE, np.empty((0, 1)))[:, 0])
            yield embedded

    scores = score_shards(density, scales, noting(), score)
    total = sum_spaces(scores)
    ids, owners = (np.concatenate([np.empty(0), *each]) for each in (units, images))
    known = ids if len(ids) == len(total) else None
    if len(owners) != len(total):
        return scores, known
    rows = worst_rows(total, owners)
    worst = {space: values[rows] for space, values in scores.items()}
    return worst, None if known is None else known[rows]


def several_of_a_unit(units: np.ndarray | None) -> np.ndarray | None:
    """The units of images, if any of them has several; None also if they are not known."""
    return units if units is not None and len(np.unique(units)) < len(units) else None


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
    scores = collect(densities, learned, score_left_out)
    scales = {
        space: location_and_scale(values, least_scale(densities[space]))
        for space, values in scores.items()
    }
    views = [space for space in scores if space != DISCREPANCY]
    if not views:
        return scales
    # All views together vary as one space does.
    together = sum_spaces({view: scaled(scores[view], scales[view]) for view in views})
    weights = dict.fromkeys(views, 1 / max(1.0, float(np.std(together))))
    weights[DISCREPANCY] = DISCREPANCY_WEIGHT
    return {
        space: (location, scale / weights[space]) for space, (location, scale) in scales.items()
    }


def scaled(scores: np.ndarray, units: tuple[float, float]) -> np.ndarray:
    return (scores - units[0]) / units[1]


def score_shards(
    densities: Mapping[str, Any],
    fusion: Mapping[str, tuple[float, float]],
    shards: Iterable[Embedded],
    score: Score = score_new,
) -> dict[str, np.ndarray]:
    """Score of each image in each space, float64 of shape (n_images,), higher = more normal."""
    raw = collect(densities, shards, score)
    return {space: scaled(values, fusion[space]) for space, values in raw.items()}


def collect(
    densities: Mapping[str, Any], shards: Iterable[Embedded], score: Score
) -> dict[str, np.ndarray]:
    """What a function gives for each density and its rows, shard by shard."""
    scores: dict[str, list[np.ndarray]] = {space: [] for space in densities}
    for embedded in shards:
        for space, density in densities.items():
            if isinstance(density, PlacedDensity):
                found = density.score_rows(embedded[space], embedded[PLACE][:, 0], score)
            else:
                found = score_rows(density, embedded[space], score)
            scores[space].append(found)
    return {
        space: np.concatenate(parts) if parts else np.empty(0) for space, parts in scores.items()
    }


def sum_spaces(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """One score per image: the sum of its scores in all spaces."""
    return np.sum(list(scores.values()), axis=0)
