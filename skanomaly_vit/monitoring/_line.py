"""One line of images: the urn, the bets on it, its rate of alarms, and the history for a chart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import beta

from skanomaly_vit.monitoring._bets import Bets
from skanomaly_vit.monitoring._cells import Cells
from skanomaly_vit.monitoring._rates import RecentRate

#: Share of the level that is set aside for a calibration set that fell unluckily.
_SET_ASIDE = 0.1

#: More points are thinned out: every second one goes.
_MAX_POINTS = 512


class Line:
    """What is known of a line, or of one group of its images, since the calibration.

    Parameters
    ----------
    cells : Cells
    anomaly_share, level : float
    rate_window : int
    """

    def __init__(self, cells: Cells, anomaly_share: float, level: float, rate_window: int) -> None:
        self.level = level
        self.n = 0
        self.alarm: tuple[int, int, str] | None = None  # number, since, direction
        self.rate = RecentRate(rate_window)
        self._n_left_out = cells.n_left_out
        self._urn = cells.places[cells.n_left_out :].astype(np.float64)
        highest = highest_tail_share(cells, anomaly_share, level)
        self.bets = Bets(highest, 1.0 if highest is None else 1 - _SET_ASIDE)
        self._points: list[tuple[int, float]] = []
        self._stride = 1

    def add(self, number: int, cell: int, is_flagged: bool) -> None:
        """Count an image, by its number and its cell."""
        self.n += 1
        self.rate.add(number, is_flagged)
        self.bets.settle(number, self._place(cell - self._n_left_out))
        evidence = self.bets.log10_capital
        if self.alarm is None and evidence >= -math.log10(self.level):
            self.alarm = (number, *self.bets.winner())
        if self.n % self._stride == 0:
            self._keep(number, evidence)

    def _place(self, cell: int) -> tuple[float, float] | None:
        """Probability of lower cells, and of those and this one, before the image came."""
        if cell < 0:
            return None
        total = float(self._urn.sum())
        low = float(self._urn[:cell].sum())
        high = low + float(self._urn[cell])
        self._urn[cell] += 1
        return low / total, high / total

    def _keep(self, number: int, evidence: float) -> None:
        self._points.append((number, evidence))
        if len(self._points) > _MAX_POINTS:
            self._points = self._points[1::2]
            self._stride *= 2

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of images, and the evidence after each."""
        numbers = np.array([number for number, _ in self._points], dtype=int)
        return numbers, np.array([evidence for _, evidence in self._points], dtype=float)

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "alarm": None if self.alarm is None else list(self.alarm),
            "rate": self.rate.to_list(),
            "urn": self._urn.astype(int).tolist(),
            "bets": self.bets.to_dict(),
            "points": [list(point) for point in self._points],
            "stride": self._stride,
        }

    def read(self, state: dict[str, Any]) -> Line:
        """Take over a state."""
        self.n = int(state["n"])
        if state["alarm"] is not None:
            number, since, direction = state["alarm"]
            self.alarm = (int(number), int(since), str(direction))
        self.rate = RecentRate.from_list(self.rate.window, state["rate"])
        self._urn = np.array(state["urn"], dtype=np.float64).reshape(self._urn.shape)
        self.bets = Bets.from_dict(state["bets"])
        self._points = [(int(number), float(evidence)) for number, evidence in state["points"]]
        self._stride = int(state["stride"])
        return self


def highest_tail_share(cells: Cells, anomaly_share: float, level: float) -> float | None:
    """Share of images in the lowest cells that a line without a change does not exceed.

    That of normal images is a beta variable over calibration sets; it exceeds its quantile in a
    tenth of `level` of them. Anomalies may come on top.
    """
    k = cells.places_left_out
    if k == 0:
        return None
    normal = float(beta.isf(_SET_ASIDE * level, k, cells.n + 1 - k))
    return anomaly_share + (1 - anomaly_share) * normal
