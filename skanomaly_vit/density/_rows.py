"""Feature vectors in shards, for passes over more rows than memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.utils import gen_batches

from skanomaly_vit.density._statistics import SHARD, FloatArray


@dataclass(frozen=True)
class Rows:
    """Rows of features, float64, in order. Each iteration is a new pass over their shards.

    Attributes
    ----------
    shape : tuple of (int, int)
        Number of rows and of features.
    shards : callable
        Begins a pass: gives an iterator over arrays of some rows each.
    """

    shape: tuple[int, int]
    shards: Callable[[], Iterator[FloatArray]]

    @classmethod
    def of(cls, X: FloatArray) -> Rows:
        """The rows of an array, `SHARD` at a time."""
        return cls(X.shape, lambda: (X[part] for part in gen_batches(len(X), SHARD)))

    def __iter__(self) -> Iterator[FloatArray]:
        return self.shards()

    def map(self, function: Callable[[FloatArray], FloatArray], n_features: int) -> Rows:
        """Results of a function that works row by row and gives `n_features` for each."""
        return Rows((self.shape[0], n_features), lambda: map(function, self))

    def gather(self) -> FloatArray:
        """All rows in one new array."""
        gathered, start = np.empty(self.shape), 0
        for shard in self:
            gathered[start : start + len(shard)] = shard
            start += len(shard)
        return gathered
