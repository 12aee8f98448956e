"""Images read ahead of the network: the next ones are prepared while a device works."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.preprocessing import Preprocessing, prepare
from skanomaly_vit._images.source import ImageSource, require_readable
from skanomaly_vit.exceptions import UnreadableImageError

#: Batches that are prepared beside the one that a device works on: one that is done, and one in
#: the making. More would take memory and no time off.
BATCHES_AHEAD = 2


def batches_ahead(device: torch.device) -> int:
    """How many batches are worth preparing while a device works on one.

    On a CPU none: decoding takes the cores from the network, and was no faster
    (benchmarks/input_pipeline.py).
    """
    return 0 if device.type == "cpu" else BATCHES_AHEAD


def count_threads(n_jobs: int | None) -> int:
    """Threads, as joblib counts jobs: None is one, -1 as many as there are cores."""
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)


class Reader:
    """Gives batches of images, in the order in which they are asked for.

    Parameters
    ----------
    source : ImageSource
    preprocessing : Preprocessing
    n_jobs : int or None
        Threads.
    n_ahead : int
        Images that are prepared ahead; with 0 all is done when it is asked for.
    pinned : bool
        Whether batches come in memory from which a GPU copies without waiting.

    Notes
    -----
    An image is prepared by itself, so that no bit hangs on what is read ahead. Images that cannot
    be read are errors when their batch is asked for, not before. Threads live from the first
    batch to `close`.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        *,
        n_jobs: int | None,
        n_ahead: int,
        pinned: bool = False,
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._n_jobs = n_jobs
        self.n_ahead = n_ahead
        self._pinned = pinned
        self._pool: ThreadPoolExecutor | None = None
        self._expected: list[int] = []
        self._begun: dict[int, Future[torch.Tensor | UnreadableImageError]] = {}

    def expect(self, positions: Iterable[int]) -> None:
        """Say which images are likely to be asked for after the next batch, first ones first."""
        self._expected = list(positions)

    def load(self, positions: Sequence[int]) -> torch.Tensor:
        """A batch of normalised images: (len(positions), 3, height, width), float32.

        Raises
        ------
        UnreadableImageError
            As `ImageSource.load` does.
        """
        if not self.n_ahead:
            return self._source.load(positions, self._preprocessing, self._n_jobs)
        wanted = [*positions, *self._expected]
        # What was expected and never asked for is not to pile up.
        self._begun = {place: self._begun[place] for place in wanted if place in self._begun}
        for position in wanted:
            if position not in self._begun:
                self._begun[position] = self._submit(position)
        images = require_readable([self._begun[position].result() for position in positions])
        for position in positions:
            self._begun.pop(position, None)
        return self._stack(images)

    def close(self) -> None:
        """End the threads, once they have done the images that they are at."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._expected = None, []
        self._begun.clear()

    def _submit(self, position: int) -> Future[torch.Tensor | UnreadableImageError]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(count_threads(self._n_jobs), "skanomaly-reader")
        return self._pool.submit(self._source.try_load, position, self._prepare)

    def _prepare(self, pixels: Array) -> torch.Tensor:
        return prepare(pixels, self._preprocessing)

    def _stack(self, images: list[torch.Tensor]) -> torch.Tensor:
        if not self._pinned:
            return torch.stack(images)
        shape = (len(images), *images[0].shape)
        batch = torch.empty(shape, dtype=images[0].dtype, device="cpu", pin_memory=True)
        return torch.stack(images, out=batch)
