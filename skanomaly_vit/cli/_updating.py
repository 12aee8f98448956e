"""The command ``update``: marks of people improve a model."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._defects import folder_of, keep_defects, list_defects
from skanomaly_vit.cli._marks import Marked, list_marked, without_known
from skanomaly_vit.cli._options import (
    EXISTING_FILE,
    batch_size_option,
    check_not_model,
    check_output,
    device_option,
    epilog,
    jobs_option,
    max_pixels_option,
    model_argument,
)
from skanomaly_vit.cli._steps import finish, load_for_files, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector

_NOTE = (
    "Exit code 2: some marked images are unreadable; the command lists them all and writes nothing."
)

_FOLDER = click.Path(exists=True, file_okay=False)

#: Models that are updated to score the images marked fine, each without some of them.
_FOLDS = 5


@click.command(
    "update",
    short_help="Improve a model by marked images.",
    epilog=epilog(
        "skanomaly update parts.skanomaly -o parts-2.skanomaly --marks marks.csv", note=_NOTE
    ),
)
@model_argument
@click.option(
    "-o", "--output", required=True, metavar="NEW", callback=check_output, help="The new model."
)
@click.option(
    "--marks",
    type=EXISTING_FILE,
    metavar="TABLE",
    help="A csv file with the columns path and mark (fine or defect); others are ignored.",
)
@click.option(
    "--root",
    type=_FOLDER,
    metavar="FOLDER",
    help="Folder that the paths in TABLE begin from.  [default: that of TABLE]",
)
@click.option(
    "--fine",
    multiple=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="Images that are fine. May be repeated.",
)
@click.option(
    "--defect",
    multiple=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="Images of defects. May be repeated.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Let a share of the images marked fine set the threshold: if they were not chosen by "
    "their scores.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def update_command(
    model: str,
    output: str,
    marks: str | None,
    root: str | None,
    fine: tuple[str, ...],
    defect: tuple[str, ...],
    calibrate: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Add images that people have marked to MODEL, and write the model NEW.

    Images marked fine join the normal ones that the model learns from. The threshold keeps its rate
    of false alarms. False alarms are no fair sample of normal images, so that they do not set it;
    with --calibrate a share of the images does, as is right for whole days or lots. Images marked
    as defects teach nothing; they are kept in the folder NEW.defects, with those of MODEL.defects,
    and every update counts how many of them are still found.
    """
    check_not_model(output, model)
    unreadable = Unreadable()
    marked = list_marked(marks, root, fine, defect, unreadable)
    detector = load_for_files(model, **options)
    _require_readable(marked, detector, unreadable)
    marked = without_known(marked, detector)
    defects = list_defects(model, marked.defects)
    with speaking_of_options():
        described = _update(detector, marked, defects, calibrate)
    if defects:
        keep_defects(output, defects)
    detector.save(output)
    described = {"model": output, "n_new_defects": len(marked.defects), **described}
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(_lines(described)))
    tell(f"Updated {model}: {output}")
    if defects:
        tell(f"Defects to test it by: {folder_of(output)}")


def _require_readable(
    marked: Marked, detector: TransformalyDetector, unreadable: Unreadable
) -> None:
    from skanomaly_vit.cli._scoring import select_readable

    select_readable([*marked.fine, *marked.defects], detector, unreadable)
    if unreadable.count:
        finish(unreadable, "nothing was written")


def _update(
    detector: TransformalyDetector, marked: Marked, defects: list[str], calibrate: bool
) -> dict[str, Any]:
    """Update a detector in place; say what it flags before and after."""
    from skanomaly_vit._images.opening import open_images
    from skanomaly_vit._images.units import find_units

    before = _flags(detector, marked.fine), _flags(detector, defects)
    thresholds = [detector.offset_]
    left_out = _flags_left_out(detector, marked.fine, calibrate)
    n_calibrating = 0
    if marked.fine:
        _learn(detector, marked.fine, calibrate)
        n_calibrating = detector._updates[-1]["n_calibrating"]
    if marked.defects:
        units = find_units(open_images(marked.defects, max_pixels=detector.max_pixels))
        detector._log("defects", units, 0)
    after = _flags(detector, marked.fine), _flags(detector, defects)
    thresholds.append(detector.offset_)
    lost = [path for path, was, is_ in zip(defects, before[1], after[1], strict=True) if was > is_]
    return {
        "threshold": dict(zip(("before", "after"), map(float, thresholds), strict=True)),
        "threshold_rate": detector.contamination_,
        "fine": {
            "n_images": len(marked.fine),
            "n_calibrating": n_calibrating,
            "flagged_before": int(before[0].sum()),
            "flagged_after": int(after[0].sum()),
            "flagged_left_out": int(left_out.sum()),
        },
        "defects": {
            "n_images": len(defects),
            "found_before": int(before[1].sum()),
            "found_after": int(after[1].sum()),
            "lost": lost,
        },
    }


def _learn(detector: TransformalyDetector, paths: list[str], calibrate: bool) -> None:
    """Update a detector in place; only with `calibrate`, it holds some of the images out."""
    share = detector.validation_fraction
    try:
        detector.set_params(validation_fraction=share if calibrate else 0.0).partial_fit(paths)
    finally:
        detector.set_params(validation_fraction=share)


def _flags(detector: TransformalyDetector, paths: list[str]) -> np.ndarray:
    import numpy as np

    return detector.predict(paths) == -1 if paths else np.zeros(0, dtype=bool)


def _flags_left_out(
    detector: TransformalyDetector, paths: list[str], calibrate: bool
) -> np.ndarray:
    """Whether each image is flagged by a model that was updated with the others alone."""
    import numpy as np

    flags = np.zeros(len(paths), dtype=bool)
    for fold in np.array_split(np.arange(len(paths)), min(_FOLDS, len(paths)) or 1):
        others = np.setdiff1d(np.arange(len(paths)), fold)
        updated = copy.copy(detector)  # `partial_fit` replaces attributes, and changes none
        if len(others):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the model itself are told
                _learn(updated, [paths[i] for i in others], calibrate)
        flags[fold] = _flags(updated, [paths[i] for i in fold])
    return flags


def _lines(of: dict[str, Any]) -> Iterator[str]:
    from skanomaly_vit._utils.provenance import printable

    fine, defects, threshold = of["fine"], of["defects"], of["threshold"]
    yield f"{'':<24} {'before':<12} {'after':<12} left out in turn"
    yield f"{'threshold':<24} {threshold['before']:<12.4g} {threshold['after']:<12.4g}"
    if fine["n_images"]:
        counts = (f"{fine[f'flagged_{when}']} of {fine['n_images']}" for when in _WHEN)
        yield "{:<24} {:<12} {:<12} {}".format("marked fine, flagged", *counts)
    if defects["n_images"]:
        counts = (f"{defects[f'found_{when}']} of {defects['n_images']}" for when in _WHEN[:2])
        yield "{:<24} {:<12} {:<12}".format("defects kept, found", *counts)
    yield ""
    if fine["n_images"]:
        n_learned = fine["n_images"] - fine["n_calibrating"]
        yield f"{n_learned} images marked fine are learned from, {fine['n_calibrating']} calibrate:"
        yield "what the new model says of them is no test. 'Left out in turn' is one: each is"
        yield "scored by a model that was updated with the others, as a similar new image would be."
    for path in defects["lost"]:
        yield printable(f"no longer found: {path}")


_WHEN = ("before", "after", "left_out")
