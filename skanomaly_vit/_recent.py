"""What this process made last, so that a search does not make it again for each setting."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """Objects under keys made of content; those used least recently go first.

    Whoever gets an object shares it: it must not be changed.

    Parameters
    ----------
    max_bytes : int
        Of all objects together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Value | None:
        """The object under `key`, if it is there."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: bytes, value: Value, n_bytes: int) -> None:
        """Keep an object of so many bytes, in place of older ones if need be."""
        with self._lock:
            if key in self._entries or n_bytes > self._max_bytes:
                return
            self._entries[key] = (value, n_bytes)
            self._bytes += n_bytes
            while self._bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
