"""Confidence sequences of a rate: intervals that hold at all times together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

# Bets on a rate that is higher or lower, from timid to bold.
_TILTS = np.concatenate([sign * np.logspace(-3, 1, 25) for sign in (-1, 1)])


def rate_interval(n_flagged: int, n: int, confidence: float) -> tuple[float, float]:
    """Interval of the mean rate, valid at every `n` at once.

    For a rate p that may change from image to image, ``exp(tilt * n_flagged)`` divided by its
    expectation is a martingale for every tilt. As the logarithm of that expectation is concave in
    p, the mean rate makes it at most larger: a mixture over tilts exceeds ``1 / (1 - confidence)``
    at any time with a probability of at most ``1 - confidence`` (Howard et al. 2021).
    """
    if n == 0:
        return 0.0, 1.0

    def excess(rate: float) -> float:
        log_expected = np.log1p(rate * np.expm1(_TILTS))
        evidence = logsumexp(_TILTS * n_flagged - n * log_expected) - math.log(len(_TILTS))
        return float(evidence + math.log1p(-confidence))

    found = n_flagged / n
    low = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, found, xtol=1e-9))
    high = 1.0 if excess(1.0) <= 0 else float(brentq(excess, found, 1.0, xtol=1e-9))
    return low, high


class RecentRate:
    """Counts of flagged images in the current window and the one before.

    Windows begin after numbers of images that are known beforehand, so that intervals stay valid.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._counts: list[list[int]] = []  # of each window: first image, images, flagged ones

    def add(self, number: int, is_flagged: bool) -> None:
        if not self._counts or self._counts[-1][1] == self.window:
            self._counts = [*self._counts[-1:], [number, 0, 0]]
        self._counts[-1][1] += 1
        self._counts[-1][2] += int(is_flagged)

    def summary(self, confidence: float) -> dict[str, Any]:
        """Rate, its interval, and the image with which it begins."""
        n, n_flagged = (sum(window[i] for window in self._counts) for i in (1, 2))
        low, high = rate_interval(n_flagged, n, confidence)
        return {
            "rate": n_flagged / n if n else None,
            "rate_low": low,
            "rate_high": high,
            "rate_since": self._counts[0][0] if n else None,
        }

    def to_list(self) -> list[list[int]]:
        return [list(window) for window in self._counts]

    @classmethod
    def from_list(cls, window: int, counts: list[list[int]]) -> RecentRate:
        rate = cls(window)
        rate._counts = [[int(first), int(n), int(flagged)] for first, n, flagged in counts]
        return rate
