"""Micro-batches: requests of many clients share the passes of one network."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class FullError(RuntimeError):
    """All places are taken."""


class StoppingError(RuntimeError):
    """Nothing new is taken, since the service stops."""


@dataclass
class Job:
    """An image that waits for its verdict.

    Parameters
    ----------
    content : bytes
    n_pixels : int
    with_map : bool
    result : Future
    """

    content: bytes
    n_pixels: int
    with_map: bool
    result: Future[Any] = field(default_factory=Future)


class BatchWorker:
    """A thread that collects jobs, and a bounded number of places for them.

    Parameters
    ----------
    process : callable
        Gets the jobs of a batch, and sets the result of each.
    places : int
        Images that are received, queued and scored at once, at most.
    batch_size : int
        Images of a batch, at most.
    batch_pixels : int or None
        Pixels of a batch, at most, unless its first image has more; None is no limit.
    max_wait : float
        Seconds that a batch waits for more images.
    """

    def __init__(
        self,
        process: Callable[[list[Job]], None],
        *,
        places: int,
        batch_size: int,
        batch_pixels: int | None,
        max_wait: float,
    ) -> None:
        self.places = places
        self._process = process
        self._batch_size = batch_size
        self._batch_pixels = batch_pixels
        self._max_wait = max_wait
        self._taken = 0
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="skanomaly-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_working(self) -> bool:
        """Whether jobs are taken and done."""
        return self._thread.is_alive() and not self._stopping

    @property
    def taken(self) -> int:
        """Places that are taken now."""
        return self._taken

    @contextmanager
    def reserve(self, n_images: int = 1) -> Iterator[None]:
        """Take places for images before they are received; raise if there are not enough."""
        with self._changed:
            if self._stopping:
                raise StoppingError
            if self._taken + n_images > self.places:
                raise FullError
            self._taken += n_images
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n_images

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, whose places are reserved."""
        with self._changed:
            if self._stopping:
                raise StoppingError
            self._queue.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs, finish those that are queued, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._collect():
            # Nobody waits for a job any more whose client has gone.
            wanted = [job for job in batch if job.result.set_running_or_notify_cancel()]
            if wanted:
                self._process(wanted)

    def _collect(self) -> list[Job]:
        """The next batch; empty if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            deadline = time.monotonic() + self._max_wait
            while len(self._queue) < self._batch_size and not self._stopping:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._take()

    def _take(self) -> list[Job]:
        batch: list[Job] = []
        n_pixels = 0
        while self._queue and len(batch) < self._batch_size:
            n_pixels += self._queue[0].n_pixels
            if batch and self._batch_pixels is not None and n_pixels > self._batch_pixels:
                break
            batch.append(self._queue.popleft())
        return batch
