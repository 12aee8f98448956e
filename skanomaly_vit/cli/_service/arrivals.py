"""Files that arrive in a folder, each once it is complete."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable

from skanomaly_vit._images.listing import has_image_suffix, walk_images
from skanomaly_vit.cli._service.score_log import Stamp

#: Called with a path below the folder and its stamp: whether the file has been done.
IsKnown = Callable[[str, Stamp], bool]


class Arrivals:
    """Image files of a folder that are not known yet.

    A file is complete once its size and time have not changed for `settle` seconds, or as soon as
    its writer closes it or renames it into place, where the system tells.

    Parameters
    ----------
    folder : str
    is_known : callable
    settle : float
        Seconds.
    on_error : callable
        Called with the path of a folder that cannot be listed, and the error.
    """

    def __init__(
        self,
        folder: str,
        is_known: IsKnown,
        *,
        settle: float,
        on_error: Callable[[str, OSError], None],
    ) -> None:
        self.folder = folder
        self._is_known = is_known
        self._settle = settle
        self._on_error = on_error
        # Path below the folder -> stamp, and the time from which it has been so.
        self._waiting: dict[str, tuple[Stamp, float]] = {}
        self._complete: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def scan(self) -> None:
        """Look at every file of the folder."""
        for path in walk_images(self.folder, self._on_error):
            self._look(os.path.relpath(path, self.folder))

    def see(self, path: str, *, is_complete: bool) -> None:
        """Look at one file, of which the system has told something."""
        name = os.path.relpath(path, self.folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.split(os.sep))
        if hidden or not has_image_suffix(name):
            return
        with self._lock:
            # Whoever writes to it now has not closed it yet.
            (self._complete.add if is_complete else self._complete.discard)(name)
        self._look(name)

    def take(self, n: int) -> list[tuple[str, Stamp]]:
        """Take up to `n` files that are complete, the longest waiting first."""
        with self._lock:
            names = list(self._waiting)
        taken: list[tuple[str, Stamp]] = []
        for name in names:
            if len(taken) == n:
                break
            self._look(name)
            with self._lock:
                found = self._waiting.get(name)
                if found is None:
                    continue
                stamp, since = found
                if name in self._complete or time.monotonic() - since >= self._settle:
                    self._forget(name)
                    taken.append((name, stamp))
        return taken

    def put_back(self, name: str) -> None:
        """Wait for a file again, which has changed or could not be opened."""
        self._look(name)

    def _look(self, name: str) -> None:
        stamp = stamp_of(os.path.join(self.folder, name))
        known = stamp is not None and self._is_known(name, stamp)
        with self._lock:
            if stamp is None or known:
                self._forget(name)
                return
            before = self._waiting.get(name)
            if before is None or before[0] != stamp:
                self._waiting[name] = (stamp, time.monotonic())

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._complete.discard(name)


def stamp_of(path: str) -> Stamp | None:
    """Stamp of a regular file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
