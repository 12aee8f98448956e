"""Features of any number of images, in memory while they are few, then in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from skanomaly_vit._backbone.discrepancy import PRETRAINED, Embedded
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import SHARD, FloatArray

#: Bytes of a space that are held in memory; more go to the folder for temporary files.
MAX_BYTES = 2**23


class FeatureStore:
    """Features of images in each space, kept in order until all are there.

    They are written and read, not mapped into memory: pages of a mapped file count as the
    memory of the process until the system wants them back.

    Parameters
    ----------
    max_bytes : int
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._columns: dict[str, _Columns] = {}
        self._n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for columns in self._columns.values():
            columns.file.close()

    def __len__(self) -> int:
        return self._n_rows

    @property
    def n_values(self) -> int:
        """How many numbers it holds."""
        return self._n_rows * sum(columns.width for columns in self._columns.values())

    def append(self, embedded: Embedded) -> None:
        """Keep the features of more images.

        Raises
        ------
        ValueError
            If they are not finite.
        OSError
            If they do not fit into the folder for temporary files.
        """
        if not all(np.isfinite(rows).all() for rows in embedded.values()):
            raise ValueError(
                "the backbone gives features that contain NaN or infinity for one of the images "
                f"from the {self._n_rows + 1}th on; check its weights"
            )
        for space, rows in embedded.items():
            if space not in self._columns:
                self._columns[space] = _Columns(rows.shape[1], rows.dtype, self._max_bytes)
            self._columns[space].write(rows)
        self._n_rows += len(embedded[PRETRAINED])

    def mask(self, positions: np.ndarray) -> np.ndarray:
        """Whether each row is at one of some positions, bool of shape (n_rows,)."""
        chosen = np.zeros(self._n_rows, dtype=bool)
        chosen[positions] = True
        return chosen

    def empty(self) -> Embedded:
        """No rows, in the types and widths of those that there are."""
        return {space: columns.read(0, 0) for space, columns in self._columns.items()}

    def stored(self, chosen: np.ndarray) -> Iterator[Embedded]:
        """The chosen rows of all spaces, in the types in which they came.

        Shards are those of a number of rows, chosen ones or not: which these are does not depend
        on the batches in which they came.
        """
        for start, of_shard in _shards(chosen):
            yield {
                space: columns.read(start, len(of_shard))[of_shard]
                for space, columns in self._columns.items()
            }

    def embedded(self, chosen: np.ndarray) -> Iterator[Embedded]:
        """The chosen rows of all spaces, in float64."""
        return map(in_float64, self.stored(chosen))

    def rows(self, space: str, chosen: np.ndarray) -> Rows:
        """The chosen rows of one space, in float64."""
        columns = self._columns[space]

        def shards() -> Iterator[FloatArray]:
            for start, of_shard in _shards(chosen):
                yield columns.read(start, len(of_shard))[of_shard].astype(np.float64)

        return Rows((int(chosen.sum()), columns.width), shards)


class _Columns:
    """The features of all images in one space."""

    def __init__(self, width: int, dtype: np.dtype, max_bytes: int) -> None:
        self.width = width
        self._dtype = dtype
        self.file = tempfile.SpooledTemporaryFile(max_size=max_bytes)  # noqa: SIM115

    def write(self, rows: np.ndarray) -> None:
        self.file.seek(0, 2)
        try:
            self.file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        except OSError as error:
            raise OSError(
                error.errno,
                f"the features of the images (some {rows[0].nbytes} bytes each) do not fit into "
                f"the folder for temporary files, {tempfile.gettempdir()!r} ({error.strerror}); "
                "name another one by the environment variable TMPDIR",
            ) from error

    def read(self, start: int, n_rows: int) -> np.ndarray:
        row_bytes = self.width * self._dtype.itemsize
        self.file.seek(start * row_bytes)
        content = self.file.read(n_rows * row_bytes)
        return np.frombuffer(content, self._dtype).reshape(n_rows, self.width)


def _shards(chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Start of each shard that has chosen rows, and which of its rows those are."""
    for start in range(0, len(chosen), SHARD):
        of_shard = chosen[start : start + SHARD]
        if of_shard.any():
            yield start, of_shard


def in_float64(embedded: Embedded) -> Embedded:
    """Features in the type that densities compute in."""
    return {space: rows.astype(np.float64) for space, rows in embedded.items()}


def in_shards(batches: Iterable[Embedded]) -> Iterator[Embedded]:
    """Features that come batch by batch, in larger parts and in float64."""
    waiting: list[Embedded] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(each[PRETRAINED]) for each in waiting) >= SHARD:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[Embedded]) -> Embedded:
    return in_float64({s: np.concatenate([batch[s] for batch in batches]) for s in batches[0]})
