"""Dates of scored images, and the days, weeks or months that they fall into."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import click

from skanomaly_vit.cli._terminal import tell

#: Columns that hold dates in tables, the first one that a table has counts. Those of `skanomaly
#: watch` are the last two: the time of the file, and when it was scored.
DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "taken_at", "mtime_ns", "scored_at")

#: Name of the period of a date; names sort as the dates do.
PERIODS: dict[str, Callable[[date], str]] = {
    "day": date.isoformat,
    "week": lambda day: "{}-W{:02}".format(*day.isocalendar()),
    "month": lambda day: f"{day:%Y-%m}",
}


def dates_of_rows(table: str, rows: Sequence[Mapping[str, Any]], column: str | None) -> list[date]:
    """Date of each row of a table: from `column`, else one that we know, else the image's file."""
    known = DATE_COLUMNS if column is None else (column,)
    found = next((name for name in known if name in rows[0]), None)
    if found is not None:
        tell(f"{table}: dates are those of the column {found!r}.")
        return [_parse(row[found], found, table) for row in rows]
    if column is not None:
        raise click.UsageError(f"{table!r} has no column {column!r}; it has {list(rows[0])}.")
    try:
        return dates_of_files(table, [str(row["path"]) for row in rows])
    except (KeyError, OSError) as error:
        raise click.UsageError(
            f"{table!r} has none of the columns {', '.join(DATE_COLUMNS)}, and the time of an "
            f"image's file is no help either ({type(error).__name__}: {error}). Name the column "
            "with --date-column."
        ) from error


def dates_of_files(batch: str, paths: Sequence[str]) -> list[date]:
    """Date at which each file was written last."""
    dates = [date.fromtimestamp(os.stat(path).st_mtime) for path in paths]
    tell(f"{batch}: dates are the times of the images' files, which a copy may have changed.")
    return dates


def _parse(value: Any, column: str, table: str) -> date:
    """A date of ISO 8601, or nanoseconds since 1970 where a column's name ends so; local time."""
    try:
        if column.endswith("_ns"):
            return date.fromtimestamp(int(value) / 1e9)
        moment = datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError) as error:
        raise click.UsageError(
            f"{table!r} holds {value!r} in the column {column!r}, which is no date of ISO 8601, "
            "such as 2025-03-31 or 2025-03-31T23:59:00+02:00. Correct it, or name another column "
            "with --date-column."
        ) from error
    return (moment if moment.tzinfo is None else moment.astimezone()).date()
