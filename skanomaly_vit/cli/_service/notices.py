"""What the system tells of a folder, through watchdog."""

from __future__ import annotations

import os
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

if TYPE_CHECKING:
    from skanomaly_vit.cli._service.arrivals import Arrivals


class Notices(FileSystemEventHandler):
    """Tells arrivals of files that are created, changed, closed or renamed; for a `with` statement.

    Parameters
    ----------
    folder : str
    arrivals : Arrivals
    wake : Event
        Set after each notice of a file that is complete.
    """

    def __init__(self, folder: str, arrivals: Arrivals, wake: Event) -> None:
        self._arrivals = arrivals
        self._wake = wake
        self._observer: Any = Observer()
        self._observer.schedule(self, folder, recursive=True)

    def __enter__(self) -> Notices:
        try:
            self._observer.start()
        except OSError as error:
            raise OSError(
                f"the system cannot tell of changes in the folder ({error.strerror or error}); "
                "add --poll SECONDS to look at it from time to time"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._observer.stop()
        self._observer.join()

    def on_created(self, event: Any) -> None:
        self._tell(event, event.src_path, is_complete=False)

    def on_modified(self, event: Any) -> None:
        self._tell(event, event.src_path, is_complete=False)

    def on_closed(self, event: Any) -> None:
        self._tell(event, event.src_path, is_complete=True)

    def on_moved(self, event: Any) -> None:
        self._tell(event, event.dest_path, is_complete=True)

    def _tell(self, event: Any, path: str | bytes, *, is_complete: bool) -> None:
        if event.is_directory or not path:
            return
        self._arrivals.see(os.fsdecode(path), is_complete=is_complete)
        if is_complete:
            self._wake.set()
