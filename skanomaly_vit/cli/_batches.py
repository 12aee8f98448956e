"""Batches of scores that `drift` tests: folders of images, tables of scores, days of either."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from skanomaly_vit.cli._dates import PERIODS, dates_of_files, dates_of_rows
from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._terminal import Unreadable

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector

# Tables of `skanomaly score` hold six digits in csv.
_TOLERANCE = 1e-5


class Dating(NamedTuple):
    """How to make batches by dates: days, weeks or months, and the column of dates, if named."""

    by: str
    column: str | None


def read_batches(
    detector: TransformalyDetector,
    batches: Sequence[str],
    unreadable: Unreadable,
    dating: Dating | None,
) -> dict[str, np.ndarray]:
    """Scores of each batch, or of each period of all batches together in the order of time."""
    import numpy as np

    if dating is None:
        return {batch: _read(detector, batch, unreadable, None)[0] for batch in batches}
    periods: dict[str, list[float]] = {}
    for batch in batches:
        for score, day in zip(*_read(detector, batch, unreadable, dating), strict=True):
            periods.setdefault(PERIODS[dating.by](day), []).append(score)
    return {period: np.array(periods[period]) for period in sorted(periods)}


def _read(
    detector: TransformalyDetector, batch: str, unreadable: Unreadable, dating: Dating | None
) -> tuple[np.ndarray, list[date]]:
    """Scores of a batch, and their dates if they are wanted."""
    import numpy as np

    if batch.lower().endswith((".csv", ".jsonl")):
        rows = _rows(batch)
        scores = _scores_of_table(detector, batch, rows)
        return scores, [] if dating is None else dates_of_rows(batch, rows, dating.column)
    scored = []
    for image in detector.iter_scores(iter(list_inputs([batch], unreadable))):
        if image.cause is not None:
            unreadable(str(image.path), image.cause)
        else:
            scored.append(image)
    if not scored:
        raise click.UsageError(f"{batch!r} has no image that can be read.")
    dates = [] if dating is None else dates_of_files(batch, [str(each.path) for each in scored])
    return np.array([each.score for each in scored]), dates


def _scores_of_table(
    detector: TransformalyDetector, table: str, rows: list[dict[str, Any]]
) -> np.ndarray:
    """Scores of a table of `skanomaly score`; those of another model are refused."""
    import numpy as np

    try:
        pairs = [(float(row["score"]), float(row["decision"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise click.UsageError(
            f"{table!r} is no table of `skanomaly score`: it needs the columns score and decision "
            f"with a number in each row ({type(error).__name__}: {error})."
        ) from error
    if not pairs:
        raise click.UsageError(f"{table!r} holds no scores.")
    scores, decisions = np.array(pairs).T
    # A decision is the score minus the threshold, which tells the model.
    size = np.abs(scores) + np.abs(decisions) + abs(detector.offset_)
    if (np.abs(scores - decisions - detector.offset_) > _TOLERANCE * size).any():
        raise click.UsageError(
            f"the scores in {table!r} are of another model, or of one with another threshold: "
            f"score - decision is {scores[0] - decisions[0]:.6g} there, and the threshold of this "
            f"model is {detector.offset_:.6g}. Score the images again."
        )
    return scores


def _rows(table: str) -> list[dict[str, Any]]:
    try:
        with open(table, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            if table.lower().endswith(".csv"):
                # `skanomaly watch` gives unreadable files a row with the cause.
                return [row for row in csv.DictReader(stream) if not row.get("cause")]
            return [json.loads(line) for line in stream]
    except ValueError as error:
        raise click.UsageError(f"{table!r} is no table of `skanomaly score` ({error}).") from error
