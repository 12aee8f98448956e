"""Incremental fit: densities, scale and threshold updated with more images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._images.units import IMAGE, Units
from skanomaly_vit.density._base import MomentDensity, UpdatableDensity
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import Kind, Statistics
from skanomaly_vit.density._whitening import axes_of, whiten
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import (
    N_KEPT,
    FitSummary,
    holds_whole_images,
    shards_of_sample,
)
from skanomaly_vit.detector._fusion import FalseAlarms, FittedDensities, calibrate
from skanomaly_vit.detector._seen_errors import ErrorFactors


def require_updatable(densities: Mapping[str, Any], summary: FitSummary | None) -> FitSummary:
    """Return the summary of a fit whose densities can be updated.

    Raises
    ------
    ValueError
        If a density cannot be updated, or there is no summary.
    """
    for space, scorer in densities.items():
        behind_pca = isinstance(scorer, Pipeline)
        density = scorer[-1] if behind_pca else scorer
        if not isinstance(density, MomentDensity if behind_pca else UpdatableDensity):
            raise ValueError(
                f"the density of the {space} space, {type(density).__name__}"
                f"{' behind a PCA' if behind_pca else ''}, cannot learn from more images without "
                "the earlier ones. GaussianDensity and ExcessDensity can, and KNNDensity and "
                "WhitenedKNNDensity without a PCA: use one of them, or fit again to all images."
            )
        if not behind_pca:
            density._require_updatable()
    return require_summary(summary)


def require_summary(summary: FitSummary | None) -> FitSummary:
    """Return the summary; a ValueError if an old file has none."""
    if summary is None:
        raise ValueError(
            "this detector was saved by a version that kept no features of its images, so it "
            "cannot be updated. Fit again."
        )
    return summary


def require_whole_images(summary: FitSummary) -> FitSummary:
    """Return a summary that holds all tiles of all images that calibrate.

    Raises
    ------
    ValueError
        If it has left some out.
    """
    if not holds_whole_images(summary.held_out, of_tiles=True):
        raise ValueError(
            "the detector does not keep the features of all tiles of the images that set the "
            f"threshold (at most {N_KEPT} tiles), so that their scores cannot be computed again. "
            "Fit again to all images, and with larger tiles if you want to update it later."
        )
    return summary


def require_not_learned(units: Units, summary: FitSummary) -> None:
    """Refuse images of units that densities have learned from: they cannot calibrate.

    Raises
    ------
    ValueError
        If there are any; it names the first one.
    """
    learned = np.flatnonzero(units.any_in(summary.learned_units))
    if len(learned):
        raise ValueError(
            f"the detector has learned from {len(learned)} of {len(units.units)} images, or from "
            f"others of their group (the first one is sample {learned[0]}). They score too high to "
            "set a threshold. Pass images that it has not seen."
        )


def require_not_normal(units: Units, summary: FitSummary) -> None:
    """Refuse defects of which the detector knows the content, or the group, as normal.

    Raises
    ------
    ValueError
        If there are any; it names the first one.
    """
    known = units.any_in(np.union1d(summary.learned_units, summary.held_out_units))
    if known.any():
        raise ValueError(
            f"the detector knows {known.sum()} of {len(known)} defects as normal images (the first "
            f"one is sample {int(np.argmax(known))}). Fit again without them, or leave them out."
        )


def update_densities(
    densities: Mapping[str, Any],
    summary: FitSummary,
    store: FeatureStore,
    held_out: np.ndarray,
    *,
    factors: ErrorFactors | None,
    fusion: str,
    false_alarms: FalseAlarms,
    weights: Mapping[str, float],
) -> FittedDensities:
    """Update densities with more images, and calibrate them with features kept of all.

    Parameters
    ----------
    densities : mapping of str to estimator
        The scorer of each space; left unchanged.
    summary : FitSummary
    store : FeatureStore
        Features of the new images.
    held_out : ndarray of bool
        Mask of the new images that no density learns from.
    factors : ErrorFactors or None
        None without a discrepancy space.
    fusion, false_alarms, weights
        See `calibrate`.
    """
    updated, statistics = dict(densities), dict(summary.statistics)
    new = FitSummary.of(store, ~held_out, held_out, {})
    if factors is not None:
        summary = summary.scaled(DISCREPANCY, factors.learned, factors.held_out)
        new = new.scaled(DISCREPANCY, factors.new, np.ones_like(factors.new))
        updated[DISCREPANCY] = copy.copy(updated[DISCREPANCY])._rescale(factors.learned)
    if not held_out.all():
        rows = {space: store.rows(space, ~held_out) for space in densities}
        if factors is not None:
            rows[DISCREPANCY] = _times(rows[DISCREPANCY], factors.new)
        for view, known in summary.statistics.items():
            statistics[view] = known + Statistics.of_shards(rows[view], Kind.COVARIANCE)
        updated = {
            space: _update(scorer, rows[space], statistics.get(space))
            for space, scorer in updated.items()
        }
    all_summary = summary.merge(new, statistics)
    if IMAGE in new.held_out:
        require_whole_images(all_summary)
    return calibrate(
        updated,
        all_summary,
        lambda: shards_of_sample(all_summary.learned),
        shards_of_sample(all_summary.held_out),
        fusion=fusion,
        false_alarms=false_alarms,
        weights=weights,
    )


def _times(rows: Rows, factor: np.ndarray) -> Rows:
    return rows.map(lambda shard: shard * factor, len(factor))


def _update(scorer: Any, rows: Rows, statistics: Statistics | None) -> Any:
    """Update a shallow copy of a scorer; updates replace attributes and change none in place."""
    if not isinstance(scorer, Pipeline) or statistics is None:
        return copy.copy(scorer)._update_rows(rows)
    pca = whiten(statistics, scorer[0].n_components)
    density = copy.copy(scorer[-1])._fit_statistics(statistics.projected(axes_of(pca)))
    return Pipeline([("pca", pca), ("density", density)])
