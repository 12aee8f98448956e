"""Tables that people and the report write: a path and what somebody says of the image, a row."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import click


class Said(NamedTuple):
    """What a row says of an image."""

    path: str
    word: str
    more: Mapping[str, str]
    row: int


def read_said(
    table: str, root: str | None, column: str, words: Mapping[str, str], more: Collection[str] = ()
) -> list[Said]:
    """Read a csv file with the columns path and `column`; ignore columns that nobody asks for.

    Parameters
    ----------
    table : str
    root : str or None
        Folder that paths in the table begin from; None is the folder of the table.
    column : str
        Column of the word that says what an image is.
    words : mapping of str to str
        Word in the table -> its meaning. Upper and lower case are the same.
    more : collection of str
        Columns that may be there, and are kept.

    Raises
    ------
    UsageError
        If a column is missing, a word is none of these, a file is missing, or rows of one image
        disagree. It names the row.
    """
    folder = os.path.dirname(table) if root is None else root
    found: dict[str, Said] = {}
    for number, row in _rows(table, ("path", column)):
        where = f"{table!r}, row {number}"
        word = words.get(row[column].strip().lower())
        if not row["path"]:
            raise click.UsageError(f"{where} has no path.")
        if word is None:
            raise click.UsageError(
                f"{where} ({row['path']!r}): {column} is {row[column]!r}, which is none of "
                f"{', '.join(words)}. Correct the row, or remove it."
            )
        path = os.path.normpath(os.path.join(folder, row["path"]))
        if not os.path.isfile(path):
            raise click.UsageError(
                f"{where}: there is no file {path!r}. Paths begin from the folder of the table; "
                "pass --root FOLDER if they begin elsewhere."
            )
        key, kept = os.path.realpath(path), {name: row.get(name) or "" for name in more}
        before = found.get(key)
        if before is not None and before.word != word:
            raise click.UsageError(
                f"{where} ({row['path']!r}): {column} is {word}, and {before.word} in row "
                f"{before.row}. Decide which it is, and remove the other row."
            )
        found[key] = Said(path, word, kept, number)
    if not found:
        raise click.UsageError(f"{table!r} has no rows below its header.")
    return list(found.values())


def _rows(table: str, needed: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv file and their numbers as a spreadsheet counts them, without empty ones."""
    # Excel writes a mark at the start, and bytes of file names that are not UTF-8 are kept.
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream, restval="")
        try:
            names = [(name or "").strip().lower() for name in reader.fieldnames or []]
            missing = [name for name in needed if name not in names]
            if missing:
                raise click.UsageError(
                    f"{table!r} has no column {' and no column '.join(missing)}; its header is "
                    f"{','.join(names)!r}. The first line names the columns, with commas between: "
                    f"{','.join(needed)}."
                )
            reader.fieldnames = names
            for number, row in enumerate(reader, start=2):
                if any(value for value in row.values() if isinstance(value, str)):
                    yield number, row
        except csv.Error as error:
            raise click.UsageError(f"{table!r} is no csv file: {error}.") from error
