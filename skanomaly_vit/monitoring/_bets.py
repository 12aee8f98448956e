"""Bets against a line that has not changed: each multiplies a capital, on average by 1 at most.

Two kinds of bets, on the images and their cells:

- On the place of an image among calibration scores *and earlier images*. If nothing has changed,
  the next image falls into a cell with a probability of (places + earlier images in it) / all: the
  cells of n scores are Polya's urn. This is exact for one fixed calibration set, whose p-values are
  not independent: the urn learns in which direction the set happened to fall.
- On the share of images in the lowest cells, which are left out above: at most `highest` if nothing
  has changed.

The capital moves between the bets, at several rates at once, so that a bet is still rich when the
change comes late (Herbster and Warmuth 1998; the jumpers of Vovk et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

# Normal scores that move down or up by so many standard deviations, spread, or draw together.
_SHIFTS = np.array([-0.4, -0.8, -1.6, -0.5, 0.4, 0.8, 1.6, 0.5, 0.0, 0.0])
_SPREADS = np.array([1.0, 1.0, 1.0, 0.7, 1.0, 1.0, 1.0, 0.7, 1.6, 0.6])

# Shares of images in the lowest cells that are bet on: this far from the highest one to 1.
_EXCESSES = np.array([0.1, 0.3, 0.8])

#: Rates at which capital moves from bet to bet, and the share of capital that does at each.
_JUMPS = np.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])[:, None]
_SHARES = np.array([0.35, 0.3, 0.2, 0.1, 0.05])[:, None]

#: In which way the scores of a line have moved if a bet has won.
DIRECTIONS = ["lower"] * 4 + ["higher"] * 4 + ["different"] * 2 + ["lower"] * 3

_TOO_LARGE = 1e200


class Bets:
    """Capital on each bet, and since when each one wins.

    Parameters
    ----------
    highest : float or None
        Highest share of images in the lowest cells; None if no cells are left out.
    capital : float
        To begin with.
    """

    def __init__(self, highest: float | None, capital: float) -> None:
        self.highest = highest
        n_bets = len(DIRECTIONS) - (len(_EXCESSES) if highest is None else 0)
        # The first share is not bet at all.
        self._prior = np.append(0.5, np.full(n_bets, 0.5 / n_bets))
        self._capital = capital * _SHARES * self._prior
        self._log_scale = 0.0
        self._gains = np.zeros(n_bets)  # log of what each bet won since `starts`
        self._starts = np.zeros(n_bets, dtype=int)
        self._tail = None if highest is None else _tail_factors(highest)

    @property
    def log10_capital(self) -> float:
        return (self._log_scale + math.log(self._capital.sum())) / math.log(10)

    def settle(self, number: int, place: tuple[float, float] | None) -> None:
        """Pay out the bets on one image.

        Parameters
        ----------
        number : int
            Of the image.
        place : (float, float) or None
            Probability of all lower cells, and that plus the cell's own; None for an image in the
            cells that are left out.
        """
        factors = np.ones(len(self._prior))
        if place is not None:
            factors[1 : 1 + len(_SHIFTS)] = _place_factors(*place)
        if self._tail is not None:
            factors[1 + len(_SHIFTS) :] = self._tail[int(place is None)]
        moving = _JUMPS * self._capital.sum(axis=1, keepdims=True)
        self._capital = ((1 - _JUMPS) * self._capital + moving * self._prior) * factors
        if self._capital.max() > _TOO_LARGE:
            self._capital /= _TOO_LARGE
            self._log_scale += math.log(_TOO_LARGE)
        self._starts[self._gains <= 0] = number
        self._gains = np.maximum(self._gains, 0) + np.log(factors[1:])

    def winner(self) -> tuple[int, str]:
        """Since which image the most successful bet wins, and what it says.

        If the best bets on lower and on higher scores both won, scores spread.
        """
        best = int(np.argmax(self._gains))
        named = zip(DIRECTIONS, self._gains, strict=False)
        won = {direction for direction, gain in named if gain > self._gains[best] / 2}
        is_both = {"lower", "higher"} <= won
        return int(self._starts[best]), "different" if is_both else DIRECTIONS[best]

    def to_dict(self) -> dict[str, Any]:
        return {
            "highest": self.highest,
            "capital": self._capital.tolist(),
            "log_scale": self._log_scale,
            "gains": self._gains.tolist(),
            "starts": self._starts.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Bets:
        bets = cls(state["highest"], 1.0)
        bets._capital = np.array(state["capital"], dtype=float).reshape(bets._capital.shape)
        bets._log_scale = float(state["log_scale"])
        bets._gains = np.array(state["gains"], dtype=float).reshape(bets._gains.shape)
        bets._starts = np.array(state["starts"], dtype=int).reshape(bets._starts.shape)
        return bets


def _place_factors(low: float, high: float) -> np.ndarray:
    """Mean over [low, high] of the densities of p-values of normal scores that moved or spread."""
    ends = (ndtri([[low], [min(high, 1.0)]]) - _SHIFTS) / _SPREADS
    return np.diff(ndtr(ends), axis=0)[0] / (high - low)


def _tail_factors(highest: float) -> np.ndarray:
    """Row 0 for an image above the lowest cells, row 1 for one in them."""
    shares = highest + (1 - highest) * _EXCESSES
    return np.stack([(1 - shares) / (1 - highest), shares / highest])
