"""A hot folder: every image that arrives is scored once, across restarts."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import NamedTuple

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.unreadable import one_line
from skanomaly_vit.cli._service.arrivals import Arrivals, stamp_of
from skanomaly_vit.cli._service.bodies import NotAnImageError, decode
from skanomaly_vit.cli._service.flagged import Keep
from skanomaly_vit.cli._service.notices import Notices
from skanomaly_vit.cli._service.score_log import LogRow, ScoreLog, Stamp
from skanomaly_vit.cli._service.scorers import Scorer, Verdict

#: Attempts to open a file, which a network drive may refuse for a while.
_ATTEMPTS = 3

#: Seconds between two looks at the folder where the system tells of changes: it may lose some.
_RESCAN = 60.0


@dataclass
class Counts:
    """What was done."""

    scored: int = 0
    flagged: int = 0
    unreadable: int = 0


class _File(NamedTuple):
    name: str
    stamp: Stamp
    content: bytes
    sha256: str


class HotFolder:
    """Scores the images of a folder as they arrive.

    Parameters
    ----------
    folder : str
    scorer : Scorer
    log : ScoreLog
    keep : callable or None
        Copies or links a flagged file. It is called before the row is written: a process that is
        killed in between does it again.
    settle : float
        Seconds without a change after which a file is complete.
    poll : float or None
        Seconds between two looks at the folder; None lets the system tell of changes.
    batch_size : int
    max_pixels : int or None
    on_unreadable : callable
        Called with path and cause.
    writing : callable
        Makes a context in which a write is not interrupted.
    """

    def __init__(
        self,
        folder: str,
        scorer: Scorer,
        log: ScoreLog,
        *,
        keep: Keep | None,
        settle: float,
        poll: float | None,
        batch_size: int,
        max_pixels: int | None,
        on_unreadable: Callable[[str, str | OSError], None],
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.counts = Counts()
        self._folder = folder
        self._scorer = scorer
        self._log = log
        self._keep = keep
        self._settle = settle
        self._poll = poll
        self._batch_size = batch_size
        self._max_pixels = max_pixels
        self._on_unreadable = on_unreadable
        self._writing = writing
        self._attempts: Counter[tuple[str, Stamp]] = Counter()
        self._unlisted: dict[str, str] = {}
        self._arrivals = Arrivals(folder, self._is_known, settle=settle, on_error=self._tell_once)

    def run(self, stop: Event, *, once: bool = False) -> None:
        """Score until `stop` is set; with `once`, until nothing is left that waits.

        Raises
        ------
        OSError
            If the system cannot tell of changes in the folder, or a row cannot be written.
        """
        wake = Event()
        watching: AbstractContextManager[object] = nullcontext()
        if self._poll is None and not once:
            watching = Notices(self._folder, self._arrivals, wake)
        interval = _RESCAN if self._poll is None else self._poll
        with watching:
            next_scan = time.monotonic()
            while not stop.is_set():
                if time.monotonic() >= next_scan:
                    self._arrivals.scan()
                    next_scan = time.monotonic() + interval
                if self._step():
                    continue
                if once and not len(self._arrivals):
                    return
                wake.wait(self._pause(next_scan))
                wake.clear()

    def _pause(self, next_scan: float) -> float:
        """Seconds until something may be ready; a signal to stop is seen twice a second."""
        until = max(next_scan - time.monotonic(), 0)
        return min(until, 0.5, max(self._settle / 4, 0.01))

    def _step(self) -> bool:
        """Score one batch, and say whether there was one."""
        taken = self._arrivals.take(self._batch_size)
        files = [file for name, stamp in taken if (file := self._open(name, stamp)) is not None]
        if files:
            self._score(files)
        return bool(taken)

    def _open(self, name: str, stamp: Stamp) -> _File | None:
        """Read a file; None if it is known by its content, has gone, changed, or cannot be read."""
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as stream:
                content = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._fail(name, stamp, error)
            return None
        if stamp_of(path) != stamp or len(content) != stamp.size:
            self._arrivals.put_back(name)
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        if self._log.knows_content(name, sha256):
            self._log.remember(name, stamp)
            return None
        return _File(name, stamp, content, sha256)

    def _fail(self, name: str, stamp: Stamp, error: OSError) -> None:
        """Try a file again later, and give it a row after some attempts."""
        self._attempts[name, stamp] += 1
        if self._attempts[name, stamp] < _ATTEMPTS:
            self._arrivals.put_back(name)
            return
        if not self._log.knows_failure(name, stamp):
            self._append([_row(_File(name, stamp, b"", ""), None, one_line(error))])

    def _is_known(self, name: str, stamp: Stamp) -> bool:
        return self._log.knows_stamp(name, stamp) or self._attempts[name, stamp] >= _ATTEMPTS

    def _score(self, files: list[_File]) -> None:
        rows: dict[str, LogRow] = {}
        images: list[tuple[_File, Array]] = []
        for file in files:
            try:
                pixels = decode(file.content, self._max_pixels)[0]
                self._scorer.check(pixels)
            except NotAnImageError as error:
                rows[file.name] = _row(file, None, str(error))
            else:
                images.append((file, pixels))
        if images:
            verdicts = self._scorer.score([pixels for _, pixels in images])
            for (file, _), verdict in zip(images, verdicts, strict=True):
                rows[file.name] = _row(file, verdict, "")
                if verdict.flag and self._keep is not None:
                    self._keep(file.name, os.path.join(self._folder, file.name), file.content)
        self._append([rows[file.name] for file in files])

    def _append(self, rows: list[LogRow]) -> None:
        with self._writing():
            self._log.append(rows)
        for row in rows:
            if row.score is None:
                self.counts.unreadable += 1
                self._on_unreadable(os.path.join(self._folder, row.path), row.cause)
            else:
                self.counts.scored += 1
                self.counts.flagged += bool(row.flag)

    def _tell_once(self, path: str, error: OSError) -> None:
        """Report a folder that cannot be listed, again only for another cause."""
        cause = one_line(error)
        if self._unlisted.get(path) != cause:
            self._unlisted[path] = cause
            self._on_unreadable(path, cause)


def _row(file: _File, verdict: Verdict | None, cause: str) -> LogRow:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    score, decision, flag, p_value = (
        (None, None, None, None)
        if verdict is None
        else (verdict.score, verdict.decision, verdict.flag, verdict.p_value)
    )
    return LogRow(
        file.name, score, decision, flag, p_value,
        cause, file.sha256, *file.stamp, now,
    )  # fmt: skip
