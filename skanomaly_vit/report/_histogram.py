"""Histogram of a report: bars, ticks and places on an axis that shows far tails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

_BINS = 60

_TICKS = 7

_LEAST = 0.015  # height of a bar of one image, as a share of the highest

#: An axis bends if a score lies this many interquartile ranges away from the median.
_FAR = 8.0

#: A bent axis is about linear up to this many interquartile ranges from the median.
_NEAR = 0.75

_MARGIN = 0.02  # of the axis, on both sides of the scores


@dataclass(frozen=True)
class Axis:
    """An axis of scores: linear around `center`, logarithmic from about `width` away from it.

    Parameters
    ----------
    center, width : float
        In scores; a `width` far beyond all scores makes the axis linear.
    low, high : float
        Ends, as ``asinh((score - center) / width)``.
    """

    center: float
    width: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Array) -> Axis:
        """Axis that shows all values."""
        first, center, third = np.quantile(values, [0.25, 0.5, 0.75])
        extent = float(np.abs(values - center).max()) or 1.0
        spread = float(third - first) or extent / _FAR
        width = _NEAR * spread if extent > _FAR * spread else 1000 * extent
        ends = np.arcsinh((np.array([values.min(), values.max()]) - center) / width)
        margin = _MARGIN * float(ends[1] - ends[0]) or math.asinh(extent / width)
        return cls(float(center), float(width), float(ends[0]) - margin, float(ends[1]) + margin)

    def places(self, scores: Any) -> Array:
        """Places of scores on the axis, 0 at its low end and 1 at its high end."""
        bent = np.arcsinh((np.asarray(scores, dtype=np.float64) - self.center) / self.width)
        return np.asarray((bent - self.low) / (self.high - self.low))

    def scores(self, places: Any) -> Array:
        """Scores at places."""
        bent = self.low + np.asarray(places, dtype=np.float64) * (self.high - self.low)
        return np.asarray(self.center + self.width * np.sinh(bent))

    def ticks(self) -> list[float]:
        """Round scores, spread over the axis; evenly, if it is linear."""
        edges = self.scores(np.linspace(0, 1, _TICKS + 1))
        steps = [float(f"{b - a:.5g}") for a, b in pairwise(edges)]
        units = [_unit(step) for step in steps]
        if len(set(units)) == 1:
            unit = units[0]
            rounded = np.arange(math.ceil(edges[0] / unit), edges[-1] // unit + 1) * unit
        else:
            finer = [_unit(step / 4) for step in steps]
            rounded = np.rint((edges[:-1] + edges[1:]) / 2 / finer) * finer
        ticks = {float(f"{tick:.12g}") + 0.0 for tick in rounded}  # no -0
        return sorted(tick for tick in ticks if edges[0] <= tick <= edges[-1])


def _unit(step: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step)


@dataclass(frozen=True)
class Bar:
    """A bar; all lengths are shares of the drawing, from its top left."""

    left: float
    top: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Histogram:
    """Histogram of scores.

    Parameters
    ----------
    axis : Axis
    bars : list of Bar
        Normal images below, anomalies stacked on them.
    highest : int
        Images of the highest bar.
    ticks : list of (place, text)
    calibration : list of float
        Places of the calibration scores.
    """

    axis: Axis
    bars: list[Bar]
    highest: int
    ticks: list[tuple[float, str]]
    calibration: list[float]


def draw_histogram(
    scores: Array, offset: float, is_anomaly: Array | None, calibration: Array | None
) -> Histogram:
    known = np.empty(0) if calibration is None else calibration
    axis = Axis.of(np.concatenate([scores, known, [offset]]))
    anomalous = np.zeros(len(scores), dtype=bool) if is_anomaly is None else is_anomaly
    edges = np.linspace(0, 1, _BINS + 1)
    normal, odd = (
        np.histogram(axis.places(scores[of]), edges)[0] for of in (~anomalous, anomalous)
    )
    highest = int((normal + odd).max())
    bars = []
    for left, n_normal, n_odd in zip(edges, normal, odd, strict=False):
        base = _height(n_normal, highest)
        bars.append(Bar(left, 1 - base, 1 / _BINS, base, "normal"))
        height = min(_height(n_odd, highest), 1 - base)
        bars.append(Bar(left, 1 - base - height, 1 / _BINS, height, "anomaly"))
    return Histogram(
        axis=axis,
        bars=[bar for bar in bars if bar.height],
        highest=highest,
        ticks=[(float(axis.places(tick)), f"{tick:g}") for tick in axis.ticks()],
        calibration=sorted({round(float(place), 3) for place in axis.places(known)}),
    )


def _height(n: int, highest: int) -> float:
    return max(n / highest, _LEAST) if n else 0.0
