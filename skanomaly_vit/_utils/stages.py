"""Stages of a computation that is repeated elsewhere: which of them differ, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Stage:
    """A stage beside what was recorded of it.

    Attributes
    ----------
    name : str
    difference : float
        Largest difference, not below 0.
    unit : str
        Of the difference, as it follows a number.
    tolerance : float
        Largest difference that rounding explains.
    n_compared : int
        Numbers that were compared; 0 if nothing was recorded.
    has_other_bits : bool
        Whether more differs than `difference` tells of: a digest.
    """

    name: str
    difference: float
    unit: str
    tolerance: float
    n_compared: int
    has_other_bits: bool = False

    @property
    def is_equal(self) -> bool:
        """Whether it is the same to the bit, as far as it was recorded."""
        return self.difference == 0 and not self.has_other_bits

    @property
    def is_same(self) -> bool:
        """Whether it is the same up to rounding."""
        return self.difference <= self.tolerance and not self.has_other_bits

    def described(self) -> dict[str, Any]:
        """Values that JSON has."""
        return {
            "name": self.name,
            "same": self.is_same,
            "difference": finite(self.difference),
            "unit": self.unit,
            "tolerance": self.tolerance,
            "n_compared": self.n_compared,
        }


def verdict(
    stages: Sequence[Stage], difference: float, *, tolerance: float, unit: float
) -> dict[str, Any]:
    """What `verify` of a detector returns.

    Parameters
    ----------
    stages : sequence of Stage
        In their order.
    difference, tolerance : float
        Of the scores, in standard deviations.
    unit : float
        The standard deviation.

    Raises
    ------
    ValueError
        If the tolerance is below 0.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance!r} is not 0 or above")
    is_same = difference <= tolerance
    return {
        "same": is_same,
        "difference": difference,
        "tolerance": float(tolerance),
        "unit": float(unit),
        "first": _first_to_differ(stages, is_same=is_same),
        "stages": [stage.described() for stage in stages],
    }


def _first_to_differ(stages: Sequence[Stage], *, is_same: bool) -> str | None:
    """Name of the stage where a difference begins; None if there is none.

    Parameters
    ----------
    stages : sequence of Stage
        In their order.
    is_same : bool
        Whether the end result is the same. If it is not, and each stage is within rounding, the
        first one that rounds differently is where it begins.
    """
    differing = [stage.name for stage in stages if not stage.is_same]
    if not differing and not is_same:
        differing = [stage.name for stage in stages if not stage.is_equal]
    return differing[0] if differing else None


def largest(found: Any, expected: Any, scale: Any = 1.0) -> float:
    """Largest difference of two arrays, in units of a scale; infinite for NaN or other shapes."""
    if np.shape(found) != np.shape(expected):
        return math.inf
    differences = np.abs(np.asarray(found, float) - np.asarray(expected, float)) / scale
    if not differences.size:
        return 0.0
    return float(differences.max()) if np.isfinite(differences).all() else math.inf


def finite(value: float) -> float | None:
    """A number as JSON has it: None for an infinite one."""
    return value if math.isfinite(value) else None


def rounded_up(value: float) -> str:
    """A number of one digit that is not below a positive one, such as ``3e-07``."""
    if not 0 < value < math.inf:
        return f"{value:g}"
    power = math.floor(math.log10(value))
    digit = math.ceil(round(value / 10.0**power, 6))
    return f"{digit * 10.0**power:.0e}"
