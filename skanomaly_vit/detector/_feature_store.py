"""Store of image features: in memory up to a limit, in temporary files beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from skanomaly_vit._backbone.discrepancy import Embedded, n_rows
from skanomaly_vit._images.tiles import PLACE
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import SHARD, FloatArray

#: Bytes of a space to hold in memory; a larger space goes to the folder for temporary files.
MAX_BYTES = 2**23


class FeatureStore:
    """Features of images in each space, in the order of the images.

    The store reads and writes files instead of mapping them: the pages of a mapped file count as
    memory of the process until the system reclaims them.

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

    def __contains__(self, space: str) -> bool:
        return space in self._columns

    @property
    def n_values(self) -> int:
        """Number of values that it holds."""
        return self._n_rows * sum(columns.width for columns in self._columns.values())

    @property
    def first_view(self) -> str:
        """Name of the space that came first."""
        return next(iter(self._columns))

    def append(self, embedded: Embedded) -> None:
        """Keep the features of more images.

        Raises
        ------
        ValueError
            If they are not finite.
        OSError
            If the folder for temporary files cannot hold them.
        """
        if not all(np.isfinite(rows).all() for rows in embedded.values()):
            raise ValueError(
                "the backbone's features contain NaN or infinity for one of the images "
                f"from the {self._n_rows + 1}th on; check its weights"
            )
        for space, rows in embedded.items():
            if space not in self._columns:
                self._columns[space] = _Columns(rows.shape[1], rows.dtype, self._max_bytes)
            self._columns[space].write(rows)
        self._n_rows += n_rows(embedded)

    def append_with(self, columns: Mapping[str, np.ndarray]) -> Callable[[Embedded], None]:
        """Make a function that appends features, each with its value of some more columns."""

        def append(embedded: Embedded) -> None:
            rows = slice(len(self), len(self) + n_rows(embedded))
            more = {name: values[rows, np.newaxis] for name, values in columns.items()}
            self.append(embedded | more)

        return append

    def mask(self, positions: np.ndarray) -> np.ndarray:
        """Mask of the rows at some positions, bool of shape (n_rows,)."""
        chosen = np.zeros(self._n_rows, dtype=bool)
        chosen[positions] = True
        return chosen

    def empty(self) -> Embedded:
        """Zero rows of each space, in its type and width."""
        return {space: columns.read(0, 0) for space, columns in self._columns.items()}

    def stored(self, chosen: np.ndarray) -> Iterator[Embedded]:
        """Yield the chosen rows of all spaces, in the types in which they came.

        Each shard takes the chosen ones from a fixed number of consecutive rows, so shards do not
        depend on the batches in which rows came.
        """
        for start, of_shard in _shards(chosen):
            yield {
                space: columns.read(start, len(of_shard))[of_shard]
                for space, columns in self._columns.items()
            }

    def embedded(self, chosen: np.ndarray) -> Iterator[Embedded]:
        """Yield the chosen rows of all spaces, in float64."""
        return map(in_float64, self.stored(chosen))

    def column(self, space: str, chosen: np.ndarray) -> np.ndarray:
        """The chosen rows of a space of one column, (n_chosen,) in float64."""
        return np.concatenate([np.empty((0, 1)), *self.rows(space, chosen)])[:, 0]

    def places(self, chosen: np.ndarray) -> dict[int, np.ndarray]:
        """Mask of the chosen rows at each place of tiles, in ascending order of places."""
        places = self.column(PLACE, np.ones(len(self), dtype=bool))
        return {int(place): chosen & (places == place) for place in np.unique(places[chosen])}

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
                "set the environment variable TMPDIR to another one",
            ) from error

    def read(self, start: int, n_rows: int) -> np.ndarray:
        row_bytes = self.width * self._dtype.itemsize
        self.file.seek(start * row_bytes)
        content = self.file.read(n_rows * row_bytes)
        return np.frombuffer(content, self._dtype).reshape(n_rows, self.width)


def _shards(chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Start of each shard with chosen rows, and the mask of these rows."""
    for start in range(0, len(chosen), SHARD):
        of_shard = chosen[start : start + SHARD]
        if of_shard.any():
            yield start, of_shard


def in_float64(embedded: Embedded) -> Embedded:
    """Features in float64, the type of densities."""
    return {space: rows.astype(np.float64) for space, rows in embedded.items()}


def in_shards(batches: Iterable[Embedded]) -> Iterator[Embedded]:
    """Join batches of features into shards, in float64."""
    waiting: list[Embedded] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(n_rows, waiting)) >= SHARD:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[Embedded]) -> Embedded:
    return in_float64({s: np.concatenate([batch[s] for batch in batches]) for s in batches[0]})
