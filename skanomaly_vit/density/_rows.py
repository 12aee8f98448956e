"""Feature vectors that can be gone through again and again without being held all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from skanomaly_vit.density._statistics import SHARD, FloatArray


class Rows(Protocol):
    """Rows of features, float64, in order.

    Attributes
    ----------
    shape : tuple of (int, int)
        Number of rows and of features.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of features."""

    def __iter__(self) -> Iterator[FloatArray]:
        """Begin a pass over the rows, some at a time."""


class ArrayRows:
    """The rows of an array."""

    def __init__(self, array: FloatArray) -> None:
        self._array = array
        self.shape: tuple[int, int] = array.shape[0], array.shape[1]

    def __iter__(self) -> Iterator[FloatArray]:
        """Begin a pass over the rows, some at a time."""
        return (self._array[i : i + SHARD] for i in range(0, len(self._array), SHARD))


class MappedRows:
    """What a function makes of rows.

    Parameters
    ----------
    rows : Rows
    function : callable
        Works row by row.
    n_features : int
        Of its results.
    """

    def __init__(
        self, rows: Rows, function: Callable[[FloatArray], FloatArray], n_features: int
    ) -> None:
        self._rows = rows
        self._function = function
        self.shape = (rows.shape[0], n_features)

    def __iter__(self) -> Iterator[FloatArray]:
        """Begin a pass over the rows, some at a time."""
        return map(self._function, self._rows)


def gather(rows: Rows) -> FloatArray:
    """All rows in one new array."""
    gathered, start = np.empty(rows.shape), 0
    for shard in rows:
        gathered[start : start + len(shard)] = shard
        start += len(shard)
    return gathered
