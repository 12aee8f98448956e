"""Bounded random samples of rows, independent of the order and batches in which rows come."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skanomaly_vit.density._statistics import FloatArray

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord


def draw_keys(rows: FloatArray, salt: bytes) -> NDArray[np.uint64]:
    """A uniform 64-bit number for each row, which depends on its values and `salt` alone."""
    contents = np.ascontiguousarray(rows + 0.0)  # -0.0 becomes 0.0
    digests = (hashlib.blake2b(row, digest_size=8, key=salt).digest() for row in contents)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True, eq=False)
class RowSample:
    """The rows with the smallest keys, at most `limit` of them.

    Every row has the same chance. Merged samples of parts equal the sample of the whole, in any
    order. Equal rows have equal keys.

    Attributes
    ----------
    rows : ndarray of shape (n_rows, n_features)
        By ascending key.
    keys : ndarray of shape (n_rows,), uint64
    limit : int
    """

    rows: FloatArray
    keys: NDArray[np.uint64]
    limit: int

    @classmethod
    def of(cls, rows: FloatArray, limit: int, salt: bytes) -> RowSample:
        """Sample some rows."""
        return cls.smallest(rows, draw_keys(rows, salt), limit)

    @classmethod
    def of_shards(cls, shards: Iterable[FloatArray], limit: int, salt: bytes) -> RowSample:
        """Sample rows that come in one shard or more."""
        return functools.reduce(cls.merge, (cls.of(shard, limit, salt) for shard in shards))

    def __len__(self) -> int:
        return len(self.rows)

    def merge(self, other: RowSample) -> RowSample:
        """Sample of the rows of both, which must have the same limit and salt."""
        if len(self) == self.limit and not (other.keys < self.keys[-1]).any():
            return self  # without a copy: the usual case after many rows
        rows = np.concatenate([self.rows, other.rows])
        return self.smallest(rows, np.concatenate([self.keys, other.keys]), self.limit)

    @classmethod
    def smallest(cls, rows: FloatArray, keys: NDArray[np.uint64], limit: int) -> RowSample:
        """Sample rows whose keys are known."""
        order = np.argsort(keys, kind="stable")[:limit]
        return cls(rows[order], keys[order], limit)

    def write_state(self, part: StateRecord) -> None:
        """Write rows and keys into a record of their own."""
        part.write(n_rows=len(self), limit=int(self.limit), dtype=self.rows.dtype.name)
        part.write_tensor("rows", self.rows)
        part.write_tensor("keys", self.keys.view(np.int64))

    @classmethod
    def read_state(cls, part: StateRecord, n_features: int) -> RowSample:
        """The sample that `write_state` wrote."""
        limit = part.read_int("limit", 1)
        n_rows = part.read_int("n_rows")
        if n_rows > limit:
            raise ValueError(f"{part.name} holds {n_rows} rows, more than its limit of {limit}")
        dtype = part.read("dtype", str)
        if dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"{part.name}.dtype is {dtype!r}")
        rows = part.read_array("rows", n_rows, n_features, dtype=dtype)
        keys = part.read_array("keys", n_rows, dtype=np.int64).view(np.uint64)
        if (keys[1:] < keys[:-1]).any():
            raise ValueError(f"{part.name} holds rows that are not in the order of their keys")
        part.close()
        return cls(rows, keys, limit)
