"""Features of any number of images, in memory as far as they are few, else in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from skanomaly_vit._recipes import DISCREPANCY, PRETRAINED
from skanomaly_vit._statistics import SHARD, FloatArray

#: Bytes that are held in memory; more go to the folder for temporary files.
MAX_BYTES = 2**23

#: Space -> features (n_images, n_features), float64, of one set of images.
Embedded: TypeAlias = dict[str, FloatArray]


class FeatureSpool:
    """Features of images in both spaces, kept in order until all are there.

    They are written and read, not mapped into memory: pages of a mapped file count as the
    memory of the process until the system wants them back.

    Parameters
    ----------
    max_bytes : int
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=max_bytes)  # noqa: SIM115
        self._dtype: np.dtype | None = None
        self._width = 0
        self.n_pretrained = 0
        self._n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._n_rows

    @property
    def n_values(self) -> int:
        """How many numbers it holds."""
        return self._n_rows * self._width

    def append(self, features: np.ndarray, discrepancies: np.ndarray) -> None:
        """Keep the features (b, dim) and discrepancies (b, n_blocks) of more images.

        Raises
        ------
        ValueError
            If they are not finite.
        OSError
            If they do not fit into the folder for temporary files.
        """
        rows = np.concatenate([features, discrepancies.astype(features.dtype)], axis=1)
        if not np.isfinite(rows).all():
            raise ValueError(
                "the backbone gives features that contain NaN or infinity for one of the images "
                f"from the {self._n_rows + 1}th on; check its weights"
            )
        self._dtype, self._width = rows.dtype, rows.shape[1]
        self.n_pretrained = features.shape[1]
        self._file.seek(0, 2)
        try:
            self._file.write(rows.tobytes())
        except OSError as error:
            raise OSError(
                error.errno,
                f"the features of the images (some {rows[0].nbytes} bytes each) do not fit into "
                f"the folder for temporary files, {tempfile.gettempdir()!r} ({error.strerror}); "
                "name another one by the environment variable TMPDIR",
            ) from error
        self._n_rows += len(rows)

    def empty(self) -> np.ndarray:
        """No rows, in the type and width of those that there are."""
        return np.empty((0, self._width), self._dtype)

    def mask(self, positions: np.ndarray) -> np.ndarray:
        """Whether each row is at one of some positions, bool of shape (n_rows,)."""
        chosen = np.zeros(self._n_rows, dtype=bool)
        chosen[positions] = True
        return chosen

    def raw(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """The chosen rows of both spaces side by side, in the type in which they came.

        Shards are those of a number of rows, chosen ones or not: which these are does not depend
        on the batches in which they came.
        """
        for start in range(0, self._n_rows, SHARD):
            of_shard = chosen[start : start + SHARD]
            if of_shard.any():
                yield self._read(start, len(of_shard))[of_shard]

    def embedded(self, chosen: np.ndarray) -> Iterator[Embedded]:
        """The chosen rows, space by space."""
        return (by_space(rows, self.n_pretrained) for rows in self.raw(chosen))

    def _read(self, start: int, n_rows: int) -> np.ndarray:
        dtype = np.dtype(self._dtype)
        row_bytes = self._width * dtype.itemsize
        self._file.seek(start * row_bytes)
        content = self._file.read(n_rows * row_bytes)
        return np.frombuffer(content, dtype).reshape(n_rows, self._width)


class SpooledRows:
    """The features of some images in one space; see `Rows`.

    Parameters
    ----------
    spool : FeatureSpool
    space : str
    chosen : ndarray of bool of shape (n_images,)
    """

    def __init__(self, spool: FeatureSpool, space: str, chosen: np.ndarray) -> None:
        self._spool = spool
        self._space = space
        self._chosen = chosen
        n_pretrained = spool.n_pretrained
        width = n_pretrained if space == PRETRAINED else spool._width - n_pretrained
        self.shape = (int(chosen.sum()), width)

    def __iter__(self) -> Iterator[FloatArray]:
        """Begin a pass over the rows, some at a time."""
        return (shard[self._space] for shard in self._spool.embedded(self._chosen))


def by_space(rows: np.ndarray, n_pretrained: int) -> Embedded:
    """Part rows of both spaces side by side, in float64."""
    values = rows.astype(np.float64)
    return {PRETRAINED: values[:, :n_pretrained], DISCREPANCY: values[:, n_pretrained:]}


def in_shards(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Embedded]:
    """Features and discrepancies that come batch by batch, by space, in larger parts."""
    waiting: list[np.ndarray] = []
    n_pretrained = 0
    for features, discrepancies in batches:
        n_pretrained = features.shape[1]
        waiting.append(np.concatenate([features, discrepancies], axis=1))
        if sum(map(len, waiting)) >= SHARD:
            yield by_space(np.concatenate(waiting), n_pretrained)
            waiting = []
    if waiting:
        yield by_space(np.concatenate(waiting), n_pretrained)
