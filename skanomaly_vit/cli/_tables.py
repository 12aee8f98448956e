"""Tables of scores, written a batch at a time: csv, jsonl, parquet or xlsx."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from skanomaly_vit.cli._terminal import uninterrupted

COLUMNS = ("path", "score", "decision", "flag", "p_value")

FORMATS = ("csv", "jsonl", "parquet", "xlsx")

#: Formats that nobody can read before the file is complete.
WHOLE = ("parquet", "xlsx")

# Rows per group of a Parquet file: few groups read fast, and one of this size takes a few MB.
_GROUP_ROWS = 10_000


#: Digits of a number in csv, which people read; other formats keep all.
_DIGITS = 6


class Row(NamedTuple):
    """Result of an image: its score, ``score - offset_``, and a flag if that is negative.

    `p_value` is None if the model has no calibration images.
    """

    path: str
    score: float
    decision: float
    flag: bool
    p_value: float | None


class Table(ABC):
    """Rows on their way to a binary stream.

    Parameters
    ----------
    stream : binary file
        Closed by whoever opened it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Add rows; a text format writes them before this returns."""

    def close(self) -> None:  # noqa: B027, most hold nothing back
        """Write the rows still held back."""

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with uninterrupted():
            self.close()

    def _write(self, text: str, errors: str) -> None:
        self._stream.write(text.encode("utf-8", errors))
        self._stream.flush()


class CsvTable(Table):
    """UTF-8 with a header; a file name that is not UTF-8 keeps its bytes.

    With `safe`, no path is a formula of a spreadsheet. Numbers need no change: a spreadsheet reads
    ``-3.1`` as a number.
    """

    def __init__(
        self, stream: BinaryIO, columns: Sequence[str] = COLUMNS, *, safe: bool = False
    ) -> None:
        super().__init__(stream)
        self._safe = safe
        self._add_rows([columns])

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._add_rows([[self._readable(cell) for cell in row] for row in rows])

    def _readable(self, cell: Any) -> Any:
        if isinstance(cell, float):
            return _rounded(cell)
        return as_text(cell) if self._safe and isinstance(cell, str) else cell

    def _add_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        # Quote all strings: left to itself, csv leaves a lone "\r" in a path bare.
        writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerows(rows)
        self._write(text.getvalue(), "surrogateescape")


def _rounded(number: float) -> float:
    """A number with fewer digits: not decimals, so that a decision keeps its sign."""
    return float(f"{number:.{_DIGITS}g}")


#: First characters by which a spreadsheet takes a text for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def as_text(cell: str) -> str:
    """A cell that a spreadsheet shows and does not run: with ' before what looks like a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


class JsonLinesTable(Table):
    r"""An object per line; non-UTF-8 bytes of a file name become escapes like ``\udcff``."""

    def add(self, rows: Sequence[Row]) -> None:
        lines = (json.dumps(_without_infinities(row), ensure_ascii=False) for row in rows)
        # A surrogate's Python escape is its JSON escape, too.
        self._write("".join(f"{line}\n" for line in lines), "backslashreplace")


def _without_infinities(row: Row) -> dict[str, Any]:
    """The row's fields, null for numbers that JSON lacks (a kernel density may give -inf)."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row._asdict().items()
    }


class ParquetTable(Table):
    """Columns of strings, doubles and booleans; readable once closed."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        import pyarrow
        import pyarrow.parquet

        text, number, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
        types = (text, number, number, flag, number)
        self._schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
        self._writer = pyarrow.parquet.ParquetWriter(stream, self._schema)
        self._rows: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= _GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        try:
            self._write_group()
        finally:
            self._writer.close()

    def _write_group(self) -> None:
        import pyarrow

        rows, self._rows = self._rows, []
        if not rows:
            return
        paths, *numbers = zip(*rows, strict=True)
        # Arrow's strings are UTF-8: escape other bytes, as in JSON.
        texts = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
        self._writer.write_table(pyarrow.table([texts, *numbers], schema=self._schema))


class ExcelTable(Table):
    """A sheet of Excel with a header that stays in view; readable once closed."""

    #: Rows that a sheet holds below the header.
    MAX_ROWS = 2**20 - 1

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        import openpyxl

        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("scores")
        self._sheet.freeze_panes = "A2"
        self._sheet.column_dimensions["A"].width = 60
        self._sheet.append(COLUMNS)
        self._n_rows = 0

    def add(self, rows: Sequence[Row]) -> None:
        self._n_rows += len(rows)
        if self._n_rows > self.MAX_ROWS:
            raise OSError(f"a sheet of Excel holds {self.MAX_ROWS} rows; write csv or parquet")
        for row in rows:
            values = _without_infinities(row)
            self._sheet.append([self._text(values.pop("path")), *values.values()])

    def _text(self, path: str) -> Any:
        """A cell that is a text, even if it looks like a formula."""
        from openpyxl.cell import WriteOnlyCell

        cell = WriteOnlyCell(self._sheet, _printable(path))
        cell.data_type = "s"
        return cell

    def close(self) -> None:
        self._book.save(self._stream)


def _printable(path: str) -> str:
    """A path with escapes for what a sheet cannot hold: control characters, bytes of no UTF-8."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FlaggedTable(Table):
    """Passes the rows of anomalies on to another table."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, rows: Sequence[Row]) -> None:
        self._table.add([row for row in rows if row.flag])

    def close(self) -> None:
        self._table.close()


class TopTable(Table):
    """Passes the most abnormal rows on to another table when it closes, the lowest score first.

    Parameters
    ----------
    table : Table
    n : int
        Number of rows to pass on; no more are held.
    """

    def __init__(self, table: Table, n: int) -> None:
        self._table = table
        self._n = n
        self._rows: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        # A stable sort: of equal scores, the earlier one stays.
        self._rows = sorted([*self._rows, *rows], key=lambda row: row.score)[: self._n]

    def close(self) -> None:
        try:
            self._table.add(self._rows)
        finally:
            self._table.close()


def open_table(stream: BinaryIO, kind: str, *, safe: bool = False) -> Table:
    """Start a table of one of `FORMATS`; `safe` is for csv."""
    if kind == "csv":
        return CsvTable(stream, safe=safe)
    if kind == "jsonl":
        return JsonLinesTable(stream)
    return ParquetTable(stream) if kind == "parquet" else ExcelTable(stream)


def format_of(path: str) -> str | None:
    """Format of a file by its suffix; None for any other suffix."""
    kind = os.path.splitext(path)[1].lower().removeprefix(".")
    return kind if kind in FORMATS else None
