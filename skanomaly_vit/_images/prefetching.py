"""Prefetching: threads prepare the next images while a device works."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.source import ImageSource, require_readable
from skanomaly_vit.exceptions import UnreadableImageError

#: Batches to prepare beside the one on the device: one that is done, and one in the making. More
#: would take memory and save no time.
BATCHES_AHEAD = 2


def batches_ahead(device: torch.device) -> int:
    """Number of batches to prepare while a device works on one.

    On a CPU 0: decoding takes cores from the network, and was no faster
    (benchmarks/input_pipeline.py).
    """
    return 0 if device.type == "cpu" else BATCHES_AHEAD


def count_threads(n_jobs: int | None) -> int:
    """Number of threads, as joblib counts jobs: None is one, -1 is one per core."""
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)


class Reader:
    """Loads batches of images in the order of the requests, and prepares the next images.

    Parameters
    ----------
    source : ImageSource
    preprocessing : Preprocessing
    n_jobs : int or None
        Threads.
    n_ahead : int
        Images to prepare ahead; with 0 `load` does all the work.
    pinned : bool
        Whether batches lie in memory from which a GPU copies without waiting.

    Notes
    -----
    Each image is prepared alone, so no bit depends on the images read ahead. `load` raises for
    unreadable images when it comes to their batch, not before. Threads live from the first batch
    to `close`.
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
        """Announce the images that are likely to follow the next batch, in order."""
        self._expected = list(positions)

    def load(self, positions: Sequence[int]) -> torch.Tensor:
        """Load a batch of normalised images: (len(positions), 3, height, width), float32.

        Raises
        ------
        UnreadableImageError
            As `ImageSource.load` does.
        """
        if not self.n_ahead:
            return self._source.load(positions, self._preprocessing, self._n_jobs)
        wanted = [*positions, *self._expected]
        # Drop images that were expected and never requested, or they would pile up.
        self._begun = {place: self._begun[place] for place in wanted if place in self._begun}
        for position in wanted:
            if position not in self._begun:
                self._begun[position] = self._submit(position)
        images = require_readable([self._begun[position].result() for position in positions])
        for position in positions:
            self._begun.pop(position, None)
        return self._stack(images)

    def close(self) -> None:
        """End the threads after their current images."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._expected = None, []
        self._begun.clear()

    def _submit(self, position: int) -> Future[torch.Tensor | UnreadableImageError]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(count_threads(self._n_jobs), "skanomaly-reader")
        return self._pool.submit(self._source.try_prepare, position, self._preprocessing)

    def _stack(self, images: list[torch.Tensor]) -> torch.Tensor:
        if not self._pinned:
            return torch.stack(images)
        shape = (len(images), *images[0].shape)
        batch = torch.empty(shape, dtype=images[0].dtype, device="cpu", pin_memory=True)
        return torch.stack(images, out=batch)
