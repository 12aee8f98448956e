"""The table of a hot folder: rows are appended, and are all that a restart knows."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

COLUMNS = (
    "path", "score", "decision", "flag", "p_value",
    "cause", "sha256", "size", "mtime_ns", "scored_at",
)  # fmt: skip

#: Digits of a number, as in the tables of `skanomaly score`.
_DIGITS = 6

# Rounding to six digits moves a threshold by less than this share.
_TOLERANCE = 1e-5


class Stamp(NamedTuple):
    """Size and time of a file: as long as they stay, its content does."""

    size: int
    mtime_ns: int


class LogRow(NamedTuple):
    """A file's result, or the cause why it has none.

    `path` begins from the watched folder. `sha256` is that of the content, empty if the file could
    not be opened.
    """

    path: str
    score: float | None
    decision: float | None
    flag: bool | None
    p_value: float | None
    cause: str
    sha256: str
    size: int
    mtime_ns: int
    scored_at: str


class ScoreLog:
    """Appends rows to a csv file, and knows the files that have one.

    Parameters
    ----------
    stream : binary file
        Opened to read and write, unbuffered or not; closed by whoever opened it.

    Raises
    ------
    ValueError
        If the file is of another kind.

    Notes
    -----
    A row counts once its line is complete. Half a line, as a power cut leaves it, is cut off.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stamps: dict[str, Stamp] = {}
        self._contents: set[bytes] = set()
        #: Threshold of the model that wrote the table; None in a table without scores.
        self.threshold: float | None = None
        self.n_rows = 0
        self._rounding = 0.0
        stream.seek(0)
        end = 0
        for number, (line, stop) in enumerate(_records(stream)):
            self._read(number, line)
            end = stop
        stream.seek(end)
        stream.truncate()
        if not end:
            self._write([COLUMNS])

    def knows_stamp(self, path: str, stamp: Stamp) -> bool:
        """Whether the file has a row, as far as size and time tell."""
        return self._stamps.get(path) == stamp

    def knows_content(self, path: str, sha256: str) -> bool:
        """Whether this content has a row under this path."""
        return _key(path, sha256) in self._contents

    def knows_failure(self, path: str, stamp: Stamp) -> bool:
        """Whether a row says that the file, with this stamp, could not be opened."""
        return _key(path, str(stamp)) in self._contents

    def remember(self, path: str, stamp: Stamp) -> None:
        """Note another stamp of a content that has a row."""
        self._stamps[path] = stamp

    def is_of(self, threshold: float) -> bool:
        """Whether the scores were decided by this threshold; true in a table without scores."""
        found = self.threshold
        return found is None or abs(found - threshold) <= self._rounding

    def append(self, rows: Sequence[LogRow]) -> None:
        """Write rows to the disk, and know their files from now on."""
        self._write([_rounded(row) for row in rows])
        for row in rows:
            self._note(row.path, row.sha256, Stamp(row.size, row.mtime_ns))
        self.n_rows += len(rows)

    def _note(self, path: str, sha256: str, stamp: Stamp) -> None:
        if sha256:
            self._stamps[path] = stamp
        self._contents.add(_key(path, sha256 or str(stamp)))

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
        self._stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self, number: int, line: str) -> None:
        try:
            (cells,) = csv.reader(io.StringIO(line, newline=""), strict=True)
            if number == 0:
                if tuple(cells) != COLUMNS:
                    raise ValueError
                return
            row = dict(zip(COLUMNS, cells, strict=True))
            stamp = Stamp(int(row["size"]), int(row["mtime_ns"]))
            if row["score"]:
                score, decision = float(row["score"]), float(row["decision"])
                self.threshold = score - decision
                self._rounding = _TOLERANCE * max(abs(score), abs(decision), 1e-300)
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"line {number + 1} is none of a table of `skanomaly watch`, whose columns are "
                f"{','.join(COLUMNS)}; pass another name"
            ) from error
        self._note(row["path"], row["sha256"], stamp)
        self.n_rows += 1


def _records(stream: BinaryIO) -> Iterator[tuple[str, int]]:
    """Complete records of a csv file, each with the place where it ends."""
    record, stop = b"", 0
    for line in stream:
        record += line
        # A path may hold newlines, between quotes.
        if record.endswith(b"\n") and record.count(b'"') % 2 == 0:
            stop += len(record)
            yield record.decode("utf-8", "surrogateescape"), stop
            record = b""


def _rounded(row: LogRow) -> list[Any]:
    return [float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value for value in row]


def _key(path: str, sha256: str) -> bytes:
    """Digest of path and content: a table may have millions of rows."""
    name = os.fsencode(path)
    return hashlib.blake2b(name + b"\0" + sha256.encode(), digest_size=16).digest()
