"""Cells: where a new score lies among the calibration scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: More calibration scores are merged into this many cells, so that the state stays small.
MAX_CELLS = 1000

# A p-value in single precision is off by 6e-8, so k / (n + 1) by less than this up to n = 10,000.
_ROUNDING = 1e-3


class Cells:
    """The n + 1 places among n calibration scores, merged into at most some `MAX_CELLS` cells.

    Parameters
    ----------
    n : int
        Number of calibration scores.
    left_out : float
        In [0, 1): the lowest cells, up to this share of the places, are left out of comparisons.
    """

    def __init__(self, n: int, left_out: float) -> None:
        self.n = n
        n_left_out = math.floor(left_out * (n + 1) + 1e-9)
        evenly = np.linspace(0, n + 1, MAX_CELLS, endpoint=False).astype(int)
        starts = np.arange(n + 1) if n < MAX_CELLS else np.append(evenly, n_left_out)
        #: First place of each cell, ascending.
        self.starts = np.unique(starts)
        #: Places in each cell.
        self.places = np.diff(self.starts, append=n + 1)
        #: Cells that are left out, and the places in them.
        self.n_left_out = int(np.searchsorted(self.starts, n_left_out))
        self.places_left_out = n_left_out

    def of_p_values(self, p_values: np.ndarray) -> np.ndarray:
        """Cell of each p-value (1 + number of calibration scores up to the score) / (n + 1)."""
        places = p_values * (self.n + 1) - 1
        nearest = np.round(places)
        wrong = np.flatnonzero((np.abs(places - nearest) > _ROUNDING) | (nearest < 0))
        if len(wrong):
            raise ValueError(
                f"p-value {p_values[wrong[0]]:.6g} of image {wrong[0]} is not one of 1/{self.n + 1}"
                f", 2/{self.n + 1}, ..., 1, as p-values among {self.n} calibration scores are; "
                "pass n_calibration of the set that they were computed with. P-values by groups do "
                "not fit; pass scores and calibration scores, one for each group"
            )
        return np.searchsorted(self.starts, nearest, side="right") - 1


class Edges:
    """Calibration scores at which cells meet; equal scores are told apart by chance.

    Parameters
    ----------
    cells : Cells
    scores : ndarray of shape (n_cells - 1,), float64, ascending
    keys : ndarray of shape (n_cells - 1,), float64
        In [0, 1), ascending among equal scores.
    random_state : int
        Seed of the keys of new scores.
    """

    def __init__(self, scores: np.ndarray, keys: np.ndarray, random_state: int) -> None:
        self.scores = scores
        self.keys = keys
        self.random_state = random_state

    @classmethod
    def of(cls, calibration_scores: np.ndarray, cells: Cells, random_state: int) -> Edges:
        keys = np.random.default_rng([random_state, 0]).random(len(calibration_scores))
        order = np.lexsort([keys, calibration_scores])[cells.starts[1:] - 1]
        return cls(calibration_scores[order], keys[order], random_state)

    def cells_of(self, scores: np.ndarray, first: int) -> np.ndarray:
        """Cell of each score; `first` is the number of the first one on the line."""
        low = np.searchsorted(self.scores, scores, side="left")
        high = np.searchsorted(self.scores, scores, side="right")
        tied = np.flatnonzero(low < high)
        if len(tied):
            # The keys depend on the image's number alone: batches of any size draw the same ones.
            bits = np.random.PCG64(np.random.SeedSequence([self.random_state, 1])).advance(first)
            keys = np.random.Generator(bits).random(len(scores))
            for i in tied:
                low[i] += np.searchsorted(self.keys[low[i] : high[i]], keys[i])
        return low

    def to_dict(self) -> dict[str, Any]:
        return {"scores": self.scores.tolist(), "keys": self.keys.tolist()}
