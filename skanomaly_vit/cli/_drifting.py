"""The command ``drift``: whether batches have moved away from the calibration images."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._batches import Dating, read_batches
from skanomaly_vit.cli._dates import PERIODS
from skanomaly_vit.cli._options import (
    HARMLESS,
    batch_size_option,
    check_picture,
    device_option,
    epilog,
    jobs_option,
    max_pixels_option,
    model_argument,
    require,
)
from skanomaly_vit.cli._steps import finish, load_for_files, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector


@click.command(
    "drift",
    short_help="Test whether batches have moved.",
    epilog=epilog(
        "skanomaly drift parts.skanomaly monday tuesday wednesday",
        "skanomaly drift parts.skanomaly monday.csv tuesday.csv --picture drift.png",
        "skanomaly drift parts.skanomaly scores.csv --by day --picture days.png",
        note=HARMLESS,
    ),
)
@model_argument
@click.argument("batches", nargs=-1, required=True, type=click.Path(exists=True))
@click.option(
    "--by",
    type=click.Choice(list(PERIODS)),
    help="Test days, weeks or months of all BATCHES together, by the dates of the images.",
)
@click.option(
    "--date-column",
    metavar="NAME",
    help="Column of dates in the tables, with --by.  [default: one of the usual names, else the "
    "times of the files]",
)
@click.option(
    "--picture",
    metavar="FILE",
    callback=check_picture,
    help="Write a .png file: the scores of each batch around the threshold.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per batch.")
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def drift_command(
    model: str,
    batches: tuple[str, ...],
    by: str | None,
    date_column: str | None,
    picture: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Test each of BATCHES: a folder of images, or a .csv or .jsonl table of `skanomaly score`.

    A batch is mostly normal images, chosen without regard to their scores: a day, a shift, a lot.
    A small p-value says that its scores are not like those of the calibration images: another
    camera, lamp or supplier. The test leaves out the lowest scores, so that a few anomalies are no
    drift.

    With --by, the batches are the days, weeks or months into which the images fall. The date of an
    image is that of its row in a table, or the time of its file; the command says which.
    """
    if date_column is not None and by is None:
        raise click.UsageError("--date-column is for --by day, week or month.")
    if picture is not None:
        require("plot", "--picture", "leave --picture out")
    unreadable = Unreadable()
    detector = load_for_files(model, **options)
    from skanomaly_vit.calibration import drift_test

    with speaking_of_options():
        known = detector._require_calibration()
    if len(set(batches)) < len(batches):
        raise click.UsageError("a batch is there twice; name each once.")
    dating = None if by is None else Dating(by, date_column)
    scores = read_batches(detector, batches, unreadable, dating)
    rows = []
    for batch, found in scores.items():
        with speaking_of_options():
            test = drift_test(known, found, anomaly_share=detector.contamination)
        flagged = float((found < detector.offset_).mean())
        rows.append({"batch": batch, "n_images": len(found), **test, "flagged": flagged})
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        _print(rows, detector)
    if picture is not None:
        _draw(rows, [known, *scores.values()], picture, detector.offset_, in_time=by is not None)
        tell(f"Picture: {picture}")
    finish(unreadable, f"{sum(map(len, scores.values()))} images in {len(rows)} batches")


def _print(rows: list[dict[str, Any]], detector: TransformalyDetector) -> None:
    from skanomaly_vit._utils.certificates import percent
    from skanomaly_vit._utils.provenance import printable

    click.echo(f"{'p-value':>9}  {'scores':<7} {'flagged':>8}  {'images':>6}  batch")
    for row in rows:
        click.echo(
            f"{_p_value(row):>9}  {row['direction']:<7} {percent(row['flagged']):>8}  "
            f"{row['n_images']:>6}  {printable(row['batch'])}"
        )
    n_known = len(detector._require_calibration())
    click.echo(
        f"Small: drift. Compare batches of about {n_known} images, the number that calibrate."
    )
    if len(rows) > 1:
        click.echo(
            f"Without any drift, about {len(rows) * 0.05:.2g} of {len(rows)} are below 0.05."
        )


def _p_value(row: dict[str, Any]) -> str:
    return f"{row['p_value']:.2g}"


def _draw(
    rows: list[dict[str, Any]],
    scores: list[np.ndarray],
    picture: str,
    offset: float,
    *,
    in_time: bool,
) -> None:
    """Boxes of scores: one below the other, or, with dates, from left to right."""
    from skanomaly_vit.cli._pictures import save_display

    names = [f"calibration\n{len(scores[0])} images"]
    for row in rows:
        names.append(f"{os.path.basename(os.path.abspath(row['batch']))}\np = {_p_value(row)}")

    def draw() -> SimpleNamespace:
        from matplotlib import pyplot as plt

        length, label = 1.2 + 0.5 * len(scores), "score (higher = more normal)"
        line: dict[str, Any] = {
            "linestyle": "--",
            "linewidth": 1,
            "label": f"threshold {offset:.4g}",
        }
        size = (max(6.0, length), 5) if in_time else (8, length)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        if in_time:
            ax.boxplot(scores, tick_labels=names, widths=0.6)
            ax.axhline(offset, **line)
            ax.tick_params(axis="x", rotation=90)
            ax.set_ylabel(label)
        else:
            ax.boxplot(scores, orientation="horizontal", tick_labels=names, widths=0.6)
            ax.axvline(offset, **line)
            ax.invert_yaxis()
            ax.set_xlabel(label)
        figure.legend(loc="outside upper right")
        return SimpleNamespace(figure_=figure)

    save_display(draw, picture)
