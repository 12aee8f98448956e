"""Shared context: a setting of the whole process while any of its threads needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class SharedContext:
    """A context that the first thread enters and the last thread leaves.

    If each thread restored the setting that it found, the second would restore that of the first,
    for good.

    Parameters
    ----------
    make : callable
        Makes the context manager; one thread may enter it and another leave it.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._n_inside = 0
        self._entered = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            if not self._n_inside:
                self._entered.enter_context(self._make())
            self._n_inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                self._entered.close()
