"""The command ``skanomaly map``: where images are abnormal, as pictures or arrays."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from skanomaly_vit.cli._inputs import count_inputs, list_inputs
from skanomaly_vit.cli._options import (
    HARMLESS,
    batch_size_option,
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
from skanomaly_vit.cli._steps import finish, load_for_files, require_maps
from skanomaly_vit.cli._tables import CsvTable
from skanomaly_vit.cli._terminal import Unreadable, progress_bar, uninterrupted

COLUMNS = ("path", "map", "highest", "score", "decision", "flag", "p_value")

# Maps are as large as the images: fewer fit into memory than a pass of the backbone takes.
_MAPS_AT_ONCE = 8


@click.command(
    "map",
    short_help="Show where images are abnormal.",
    epilog=epilog(
        "skanomaly map parts.skanomaly parts/new -o maps",
        "skanomaly map parts.skanomaly parts/new/1.png -o maps --format npy --method features",
        note=HARMLESS,
    ),
)
@model_argument
@images_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Folder for the files; created if missing.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "npy", "both"]),
    default="png",
    show_default=True,
    help="Pictures with the map overlaid, raw float32 maps, or both.",
)
@click.option(
    "--method",
    type=click.Choice(["discrepancy", "features", "both"]),
    help="Source of the map.  [default: the spaces of the score]",
)
@map_range_option
@null_option
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def map_command(
    model: str,
    images: tuple[str, ...],
    output: str,
    kind: str,
    method: str | None,
    map_range: tuple[float, float] | None,
    null: bool,
    batch_size: int | None,
    **options: Any,
) -> None:
    """Write anomaly maps of IMAGES: files, folders, or - for paths on standard input.

    The map of some/where/1.jpg is FOLDER/some/where/1.jpg.png (or .npy), so that images of the
    same name do not collide. A map has the size of its image; higher is more abnormal. A table on
    standard output names the file of each image, the highest value of the map, and what `score`
    says: score, decision, flag and p_value.
    """
    if kind != "npy":
        require("plot", f"--format {kind}", "--format npy does without it")
    scale_ends = check_range(map_range)
    unreadable = Unreadable()
    paths = list_inputs(images, unreadable, null)
    batch_size = batch_size or _MAPS_AT_ONCE
    detector = load_for_files(model, on_error="nan", batch_size=batch_size, **options)
    require_maps(detector, method)
    from skanomaly_vit.calibration._p_values import CalibrationScores
    from skanomaly_vit.cli._map_files import TargetNames, save_map, save_overlay
    from skanomaly_vit.cli._scoring import chunked, compute_readable
    from skanomaly_vit.display._overlay import Scale

    known, scale = CalibrationScores.of(detector), Scale(*scale_ends)
    names, n_done = TargetNames(output), 0
    table = CsvTable(sys.stdout.buffer, COLUMNS)
    shown = not sys.stdout.isatty()  # there, the rows show the progress
    with progress_bar("mapping", count_inputs(images), shown=shown) as bar:
        for chunk in chunked(paths, batch_size):
            mapped = compute_readable(
                lambda paths: list(zip(*detector._score_and_map(paths, method), strict=True)),
                chunk,
                unreadable,
            )
            for path, (score, anomaly_map) in mapped:
                target = names.name(path)
                with uninterrupted():
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    if kind != "png":
                        file = save_map(target, anomaly_map)
                    if kind != "npy":
                        file = save_overlay(target, path, anomaly_map, scale, detector.max_pixels)
                    decision = float(score - detector.offset_)
                    p_value = None if known is None else known.p_value(score)
                    highest = float(anomaly_map.max())
                    table.add([
                        (path, file, highest, float(score), decision, decision < 0, p_value)
                    ])  # fmt: skip
                n_done += 1
            bar.update(len(chunk))
    finish(unreadable, f"{n_done} images mapped")
