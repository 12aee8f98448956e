"""DiskCache: bytes under keys, checked, of bounded size, shared by processes."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import CacheWarning

#: Keys in one SQL statement; SQLite allows at least 999 variables.
_KEYS_AT_ONCE = 500

#: Seconds before another use of an entry is recorded: each record costs a write.
_USE_RESOLUTION = 60.0

#: Seconds to wait for another process's write.
_PATIENCE = 60.0

#: A full cache is emptied to this share, so that not every write has to drop an entry.
_SHARE_LEFT = 0.9

#: SQLite cuts the write-ahead log to this many bytes once the database has its content.
_LARGEST_LOG = 2**26

#: Bytes of the largest entry; SQLite's own limit is a little below 2**30.
_LARGEST = 2**29

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, checksum INTEGER NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL,
    value BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used, key, size);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entries
    BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS entry_dropped AFTER DELETE ON entries
    BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
"""


class DiskCache:
    """Cache of features, tokens and students in a file on disk.

    Pass it as the parameter `memory` of the estimators. Any number of processes of one machine
    share a cache; a process killed while it writes leaves the cache as it was before.

    Parameters
    ----------
    location : str or path-like
        A folder; `DiskCache` makes it if it does not exist. It must be on a local disk: SQLite's
        write-ahead log does not work over a network.
    max_bytes : int, default=10 * 2**30
        Size in bytes of all entries. Beyond it, the cache drops the least recently used entries
        first.

    See Also
    --------
    TransformalyDetector : Its parameter `memory` takes a cache, or a path to one.

    Notes
    -----
    Entries are plain bytes with a checksum (CRC-32) in an SQLite database; the cache never
    executes or unpickles them.

    Examples
    --------
    >>> import tempfile
    >>> from skanomaly_vit import DiskCache
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with DiskCache(folder, max_bytes=10**6) as cache:
    ...         cache.put({b"key": b"value"})
    ...         cache.get([b"key", b"other"])
    {b'key': b'value'}
    """

    def __init__(self, location: str | os.PathLike[str], max_bytes: int = 10 * 2**30) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes} must be at least 1")
        self.location = Path(location).expanduser()
        # Not Path.exists: it raises if a folder above is not readable.
        if os.path.exists(self.location) and not os.path.isdir(self.location):
            raise ValueError(f"{str(self.location)!r} is a file; a cache needs a folder")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._finalizer: weakref.finalize[..., DiskCache] | None = None
        self._broken = False
        with _caches_lock:
            _caches.add(self)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Look entries up.

        Parameters
        ----------
        keys : sequence of bytes
            Keys of the entries.

        Returns
        -------
        found : dict of bytes to bytes
            The values of the entries that exist and are whole.

        Warns
        -----
        CacheWarning
            If an entry is damaged, or the cache cannot be read.
        """
        found: dict[bytes, bytes] = {}
        damaged: list[bytes] = []

        def _read(connection: sqlite3.Connection) -> None:
            stale = []
            for key, checksum, used, value in _rows(connection, keys):
                # A damaged header of a row can give the value any type.
                if not isinstance(value, bytes) or _checksum(key, value) != checksum:
                    damaged.append(key)
                    continue
                found[key] = value
                if used < time.time() - _USE_RESOLUTION:
                    stale.append((time.time(), key))
            if stale or damaged:
                with connection:
                    connection.executemany("UPDATE entries SET used = ? WHERE key = ?", stale)
                    _drop(connection, damaged)

        self._do(_read)
        if damaged:
            self._warn(f"{len(damaged)} damaged entry(ies) dropped, to be computed again")
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep entries: all of them or, if the process is killed meanwhile, none.

        Parameters
        ----------
        entries : mapping of bytes to bytes
            `put` ignores entries under keys that exist, and entries larger than the cache.

        Warns
        -----
        CacheWarning
            If the cache cannot be written.
        """
        limit = min(self.max_bytes, _LARGEST)
        now = time.time()
        rows = [
            (key, _checksum(key, value), len(value), now, value)
            for key, value in entries.items()
            if len(value) <= limit
        ]

        def _write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
                self._make_room(connection, now)

        if rows:
            self._do(_write)

    @property
    def size(self) -> int:
        """Bytes of all entries.

        Returns
        -------
        size : int
            0 if the cache cannot be read.
        """
        sizes = [0]
        self._do(lambda connection: sizes.append(_total(connection)))
        return sizes[-1]

    @property
    def works(self) -> bool:
        """Whether the cache is in use.

        Returns
        -------
        works : bool
            False once reading or writing has failed.
        """
        return not self._broken

    def close(self) -> None:
        """Close the file. The next use of the cache opens it again."""
        with self._lock:
            self._disconnect()

    def __enter__(self) -> DiskCache:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DiskCache({str(self.location)!r}, max_bytes={self.max_bytes})"

    def __deepcopy__(self, memo: dict[int, Any]) -> DiskCache:
        # scikit-learn's clone copies parameters: all clones share one connection.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.max_bytes)

    def _make_room(self, connection: sqlite3.Connection, now: float) -> None:
        excess = _total(connection) - self.max_bytes
        if excess <= 0:
            return
        spare = int((1 - _SHARE_LEFT) * self.max_bytes)
        dropped = []
        oldest_first = "SELECT key, size, used FROM entries ORDER BY used, key"
        for key, size, used in connection.execute(oldest_first):
            # Entries just written go only if they must.
            if excess <= (0 if used >= now else -spare):
                break
            dropped.append(key)
            excess -= size
        _drop(connection, dropped)

    def _do(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work`, one thread at a time; if it fails, the cache is not used any more."""
        with self._lock:
            if self._broken:
                return
            try:
                work(self._connect())
                return
            except (sqlite3.Error, OSError, TypeError, ValueError) as error:
                # The last two: a damaged file can hold values of any type, and text in no encoding.
                self._broken = True
                self._disconnect()
                reason = f"{type(error).__name__}: {error}"
        self._warn(f"it is not used any more ({reason})")

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self.location.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self.location / "cache.sqlite")
            self._finalizer = weakref.finalize(self, self._connection.close)
        return self._connection

    def _disconnect(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._connection = self._finalizer = None

    def _warn(self, what: str) -> None:
        message = f"The cache at {str(self.location)!r}: {what}."
        warn_user(message, CacheWarning)


#: All caches of this process, which a fork has to disconnect first.
_caches: weakref.WeakSet[DiskCache] = weakref.WeakSet()

_caches_lock = threading.Lock()

_waiting_for_fork: list[DiskCache] = []


def _before_fork() -> None:
    """Close every file and release every lock: a fork can carry over neither.

    SQLite in the child would believe that it holds the file locks of its parent, which it does
    not, and another process could delete the write-ahead log that the child writes to.
    """
    _caches_lock.acquire()
    for cache in list(_caches):
        cache._lock.acquire()
        _waiting_for_fork.append(cache)
        cache._disconnect()


def _after_fork() -> None:
    while _waiting_for_fork:
        _waiting_for_fork.pop()._lock.release()
    _caches_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


def _connect(path: Path) -> sqlite3.Connection:
    deadline = time.monotonic() + _PATIENCE
    while True:
        connection = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)
        try:
            connection.execute("PRAGMA page_size = 16384")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_LARGEST_LOG}")
            connection.executescript(_SCHEMA)
            return connection
        except (sqlite3.Error, ValueError) as error:
            connection.close()
            # SQLite does not wait for a process that is just making the file.
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _rows(connection: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        marks = ", ".join("?" * len(some))
        query = f"SELECT key, checksum, used, value FROM entries WHERE key IN ({marks})"
        yield from connection.execute(query, some)


def _drop(connection: sqlite3.Connection, keys: list[bytes]) -> None:
    connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])


def _total(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT bytes FROM total").fetchone()[0])


def _checksum(key: bytes, value: bytes) -> int:
    """CRC-32 of value and key: an entry under the key of another is damaged.

    It guards against accidents, at twice the speed of a cryptographic digest.
    """
    return zlib.crc32(value, zlib.crc32(key))
