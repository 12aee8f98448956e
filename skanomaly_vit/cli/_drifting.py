"""The command ``drift``: whether batches have moved away from the calibration images."""

from __future__ import annotations

import csv
import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._inputs import list_inputs
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

# Tables of `skanomaly score` hold six digits in csv.
_TOLERANCE = 1e-5


@click.command(
    "drift",
    short_help="Test whether batches have moved.",
    epilog=epilog(
        "skanomaly drift parts.skanomaly monday tuesday wednesday",
        "skanomaly drift parts.skanomaly monday.csv tuesday.csv --picture drift.png",
        note=HARMLESS,
    ),
)
@model_argument
@click.argument("batches", nargs=-1, required=True, type=click.Path(exists=True))
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
    model: str, batches: tuple[str, ...], picture: str | None, as_json: bool, **options: Any
) -> None:
    """Test each of BATCHES: a folder of images, or a .csv or .jsonl table of `skanomaly score`.

    A batch is mostly normal images, chosen without regard to their scores: a day, a shift, a lot.
    A small p-value says that its scores are not like those of the calibration images: another
    camera, lamp or supplier. The test leaves out the lowest scores, so that a few anomalies are no
    drift.
    """
    if picture is not None:
        require("plot", "--picture", "leave --picture out")
    unreadable = Unreadable()
    detector = load_for_files(model, **options)
    from skanomaly_vit.calibration import drift_test

    with speaking_of_options():
        known = detector._require_calibration()
    if len(set(batches)) < len(batches):
        raise click.UsageError("a batch is there twice; name each once.")
    scores = {batch: _scores_of(detector, batch, unreadable) for batch in batches}
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
        _draw(rows, [known, *scores.values()], picture, detector.offset_)
        tell(f"Picture: {picture}")
    finish(unreadable, f"{sum(map(len, scores.values()))} images in {len(batches)} batches")


def _scores_of(detector: TransformalyDetector, batch: str, unreadable: Unreadable) -> np.ndarray:
    import numpy as np

    if batch.lower().endswith((".csv", ".jsonl")):
        return _from_table(detector, batch)
    scores = []
    for image in detector.iter_scores(iter(list_inputs([batch], unreadable))):
        if image.cause is not None:
            unreadable(str(image.path), image.cause)
        else:
            scores.append(image.score)
    if not scores:
        raise click.UsageError(f"{batch!r} has no image that can be read.")
    return np.array(scores)


def _from_table(detector: TransformalyDetector, table: str) -> np.ndarray:
    """Scores of a table of `skanomaly score`; those of another model are refused."""
    import numpy as np

    try:
        rows = [(float(row["score"]), float(row["decision"])) for row in _rows(table)]
    except (KeyError, TypeError, ValueError) as error:
        raise click.UsageError(
            f"{table!r} is no table of `skanomaly score`: it needs the columns score and decision "
            f"with a number in each row ({type(error).__name__}: {error})."
        ) from error
    if not rows:
        raise click.UsageError(f"{table!r} holds no scores.")
    scores, decisions = np.array(rows).T
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
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        if table.lower().endswith(".csv"):
            # `skanomaly watch` gives unreadable files a row with the cause.
            return [row for row in csv.DictReader(stream) if not row.get("cause")]
        return [json.loads(line) for line in stream]


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
    rows: list[dict[str, Any]], scores: list[np.ndarray], picture: str, offset: float
) -> None:
    from skanomaly_vit.cli._pictures import save_display

    def draw() -> SimpleNamespace:
        from matplotlib import pyplot as plt

        figure, ax = plt.subplots(figsize=(8, 1.2 + 0.5 * len(scores)), layout="constrained")
        names = [f"calibration\n{len(scores[0])} images"]
        for row in rows:
            name = os.path.basename(os.path.abspath(row["batch"]))
            names.append(f"{name}\np = {_p_value(row)}")
        ax.boxplot(scores, orientation="horizontal", tick_labels=names, widths=0.6)
        ax.axvline(offset, linestyle="--", linewidth=1, label=f"threshold {offset:.4g}")
        ax.invert_yaxis()
        ax.set_xlabel("score (higher = more normal)")
        figure.legend(loc="outside upper right")
        return SimpleNamespace(figure_=figure)

    save_display(draw, picture)
