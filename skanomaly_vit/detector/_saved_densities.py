"""The density of a feature space in a model file: one, or one for each place of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from skanomaly_vit.density._saving import read_scorer, write_scorer
from skanomaly_vit.detector._placed import PlacedDensity
from skanomaly_vit.persistence._record import StateRecord


def write_any_scorer(record: StateRecord, scorer: Any) -> None:
    """Write a fitted scorer, or those of all places."""
    if not isinstance(scorer, PlacedDensity):
        write_scorer(record, scorer)
        return
    for place, density in scorer.densities.items():
        write_scorer(record.write_part(str(place)), density)
    first = record.values[str(next(iter(scorer.densities)))]
    record.write(
        **{"class": first["class"]},
        places=list(scorer.densities),
        scales=[list(map(float, scorer.scales[place])) for place in scorer.densities],
    )


def read_any_scorer(record: StateRecord, grid: tuple[int, int] | None) -> tuple[Any, int]:
    """The scorer that `write_any_scorer` wrote, and the number of features of its input.

    Parameters
    ----------
    record : StateRecord
    grid : tuple of (int, int) or None
        Rows and columns of tiles with densities of their own.
    """
    if grid is None:
        return read_scorer(record)
    record.read("class", str)
    places, scales = record.read_list("places", int), record.read_list("scales", list)
    if (
        not places
        or not len(set(places)) == len(places) == len(scales)
        or not all(0 <= place < grid[0] * grid[1] for place in places)
    ):
        raise ValueError(f"{record.name}.places is {places}, for tiles of {grid[0]} x {grid[1]}")
    read = {place: read_scorer(record.read_part(str(place))) for place in places}
    record.close()
    widths = {n_features for _, n_features in read.values()}
    if len(widths) > 1:
        raise ValueError(f"{record.name} takes {sorted(widths)} features at different places")
    densities = {place: scorer for place, (scorer, _) in read.items()}
    found = dict(zip(places, map(_scale, scales), strict=True))
    return PlacedDensity(densities, found), widths.pop()


def _scale(values: list[Any]) -> tuple[float, float]:
    if (
        len(values) != 2
        or not all(isinstance(value, float) and np.isfinite(value) for value in values)
        or values[1] <= 0
    ):
        raise ValueError(f"{values} is no location and scale of a place")
    return values[0], values[1]
