"""A density for each place of tiles, where parts are aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from skanomaly_vit.density._base import UpdatableDensity
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.detector._space_density import (
    Score,
    fit_whitened,
    least_scale,
    location_and_scale,
    score_left_out,
    score_rows,
)

#: Fewest tiles at a place, as many as any density needs.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class PlacedDensity:
    """Densities of one feature space, one for each place of tiles.

    Attributes
    ----------
    densities : dict of int to estimator
        The scorer of each place. Places are numbered row by row, from 0.
    scales : dict of int to (float, float)
        Location and scale that standardize the scores of a place, so that those of different
        places compare: of the scores that training tiles have when left out.
    """

    densities: dict[int, Any]
    scales: dict[int, tuple[float, float]]

    def score_rows(self, rows: np.ndarray, places: np.ndarray, score: Score) -> np.ndarray:
        """Standardized scores of tiles, each by the density of its place.

        Parameters
        ----------
        rows : ndarray of shape (n_tiles, n_features), float64
        places : ndarray of shape (n_tiles,)
        score : callable
            Gives the scores of rows by a density.

        Returns
        -------
        scores : ndarray of shape (n_tiles,), float64
        """
        scores = np.empty(len(rows))
        for place in np.unique(places):
            here = places == place
            location, scale = self.scales[int(place)]
            found = score_rows(self.densities[int(place)], rows[here], score)
            scores[here] = (found - location) / scale
        return scores

    def forget_statistics(self) -> None:
        """Keep what scores need only, once nothing is left out any more.

        `partial_fit` refuses tiles, and statistics weigh three times as much as all else.
        """
        for scorer in self.densities.values():
            density = scorer[-1] if isinstance(scorer, Pipeline) else scorer
            if isinstance(density, UpdatableDensity):
                density._forget_statistics()


def require_tiles(learned: Mapping[int, np.ndarray], held_out: Mapping[int, np.ndarray]) -> None:
    """Refuse places with too few tiles to learn from.

    Parameters
    ----------
    learned, held_out : mapping of int to ndarray of bool
        Mask of the tiles at each place, of images to learn from and of others.

    Raises
    ------
    ValueError
        If there are fewer than two tiles at a place.
    """
    for place in sorted({*learned, *held_out}):
        n_tiles = int(learned[place].sum()) if place in learned else 0
        if n_tiles < _FEWEST:
            raise ValueError(
                f"{n_tiles} of the images that the densities learn from have a tile at place "
                f"{place} (row by row from 0), and a density needs {_FEWEST}; pass more images "
                "whose regions of interest reach there, or tile_density='shared'"
            )


def fit_places(
    density: str | BaseEstimator,
    rows: Mapping[int, Rows],
    variance: float | None,
    *,
    seed: int,
    standardizes: bool,
) -> PlacedDensity:
    """Fit a scorer to the tiles of each place.

    Parameters
    ----------
    density : str or estimator
    rows : mapping of int to Rows
        Features of the tiles of each place.
    variance : float or None
    seed : int
        See `fit_whitened`.
    standardizes : bool
        Whether to standardize the scores of each place; if not, they are log-densities.
    """
    densities = {
        place: fit_whitened(density, of_place, variance, seed=seed)[0]
        for place, of_place in rows.items()
    }
    scales = dict.fromkeys(rows, (0.0, 1.0))
    if standardizes:
        scales = {place: _scale_of(densities[place], of_place) for place, of_place in rows.items()}
    return PlacedDensity(densities, scales)


def _scale_of(scorer: Any, rows: Rows) -> tuple[float, float]:
    scores = [score_rows(scorer, shard, score_left_out) for shard in rows]
    return location_and_scale(np.concatenate(scores), least_scale(scorer))
