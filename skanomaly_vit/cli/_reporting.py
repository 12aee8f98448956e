"""The command ``skanomaly report``, and the tables of labels and names that it reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._label_tables import _rows
from skanomaly_vit.cli._labelled import ANOMALY, NORMAL, read_labels
from skanomaly_vit.cli._options import (
    EXISTING_FILE,
    HARMLESS,
    batch_size_option,
    check_output,
    check_range,
    device_option,
    epilog,
    images_argument,
    jobs_option,
    map_range_option,
    max_pixels_option,
    model_argument,
    null_option,
    require,
)
from skanomaly_vit.cli._steps import finish, load_for_files
from skanomaly_vit.cli._terminal import Unreadable, told_progress


@click.command(
    "report",
    short_help="Write an HTML report.",
    epilog=epilog(
        "skanomaly report parts.skanomaly parts/new -o report.html",
        "skanomaly report parts.skanomaly parts/test -o test.html --labels parts/test.csv",
        note=HARMLESS,
    ),
)
@model_argument
@images_argument
@click.option(
    "-o", "--output", required=True, metavar="FILE", callback=check_output, help="An .html file."
)
@click.option(
    "--labels",
    type=EXISTING_FILE,
    metavar="TABLE",
    help="A csv file with the columns path, label (normal or anomaly) and, if you like, kind.",
)
@click.option(
    "--names",
    type=EXISTING_FILE,
    metavar="TABLE",
    help="A csv file with the columns path and name: what to call each image.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="Folder that the paths in a TABLE begin from.  [default: that of the TABLE]",
)
@click.option("--title", metavar="TEXT", help="Heading.  [default: Anomaly report]")
@click.option(
    "--n-maps",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    metavar="N",
    help="Large images with maps among the most abnormal, and among the least certain.",
)
@click.option(
    "--folder",
    is_flag=True,
    help="Write pictures as files into a folder beside FILE, with a large copy of each image.",
)
@click.option(
    "--in-order",
    is_flag=True,
    help="The images are in the order in which they came: add a chart of whether the line changed.",
)
@map_range_option
@null_option
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def report_command(
    model: str,
    images: tuple[str, ...],
    output: str,
    labels: str | None,
    names: str | None,
    root: str | None,
    title: str | None,
    n_maps: int,
    folder: bool,
    in_order: bool,
    map_range: tuple[float, float] | None,
    null: bool,
    **options: Any,
) -> None:
    """Write an HTML report on IMAGES: files, folders, or - for paths on standard input.

    The report is one page to look at and hand on, with scores, p-values, pictures and maps, and a
    threshold to move; it needs no network. People mark images in it as fine or defect, and save
    the marks as a csv file. The command reports unreadable images on standard error and leaves
    them out.
    """
    if not output.lower().endswith((".html", ".htm")):
        raise click.UsageError(f"{output!r} does not end in .html, as a report must.")
    if root is not None and labels is None and names is None:
        raise click.UsageError("--root is for --labels and --names, whose paths begin there.")
    require("report", "a report")
    render = import_module("skanomaly_vit.report").write_report
    told: dict[str, Any] = {} if map_range is None else {"map_range": check_range(map_range)}
    unreadable = Unreadable()
    paths = list_inputs(images, unreadable, null)
    detector = load_for_files(model, **options)
    from skanomaly_vit.cli._scoring import select_readable

    readable = select_readable(list(paths), detector, unreadable)
    if not readable:
        finish(unreadable, "no report was written")
        raise click.UsageError("there are no images to report on")
    if labels is not None:
        told |= _read_labels(labels, root, readable)
    if names is not None:
        told["names"] = _read_names(names, root, readable)
    told |= {"title": title, "n_maps": n_maps, "folder": folder, "in_order": in_order}
    try:
        with told_progress("reporting") as callback:
            render(detector, readable, path=output, callback=callback, **told)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    finish(unreadable, f"{len(readable)} images in {output}")


def _read_labels(table: str, root: str | None, paths: Sequence[str]) -> dict[str, Any]:
    """Arguments ``y`` and ``anomaly_label`` for `write_report`: kinds are labels of anomalies."""
    labels = {}
    for said, kind in read_labels(table, root):
        if said.word == ANOMALY and kind == NORMAL:
            raise click.UsageError(
                f"{table!r}, row {said.row} ({said.path!r}): an anomaly is of the kind 'normal'. "
                "Correct its label or its kind."
            )
        labels[os.path.realpath(said.path)] = NORMAL if said.word == NORMAL else kind
    y = _look_up(labels, paths, table, "label")
    return {"y": y, "anomaly_label": sorted({label for label in y if label != NORMAL})}


def _read_names(table: str, root: str | None, paths: Sequence[str]) -> list[str]:
    """Name of each image."""
    folder = os.path.dirname(table) if root is None else root
    names = {
        os.path.realpath(os.path.join(folder, row["path"])): row["name"]
        for _, row in _rows(table, ("path", "name"))
    }
    return _look_up(names, paths, table, "name")


def _look_up(found: dict[str, str], paths: Sequence[str], table: str, column: str) -> list[str]:
    lacking = [path for path in paths if not found.get(os.path.realpath(path))]
    if lacking:
        raise click.UsageError(
            f"{table!r} has no {column} for {len(lacking)} of {len(paths)} images, first "
            f"{lacking[0]!r}. Add a row for each; paths begin from the folder of the table, or "
            "from --root FOLDER."
        )
    return [found[os.path.realpath(path)] for path in paths]
