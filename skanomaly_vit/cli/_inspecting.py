"""The command ``inspect``: what a model has against one image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

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
from skanomaly_vit.cli._steps import finish, load_for_files, require_maps, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector


#: How many neighbors to name, if the command line does not say.
_NEIGHBORS = 5


@click.command(
    "inspect",
    short_help="Show what the model has against an image.",
    epilog=epilog(
        "skanomaly inspect parts.skanomaly parts/new/17.png --picture why.png",
        "skanomaly inspect parts.skanomaly parts/new/17.png --normal parts/good",
        note=HARMLESS,
    ),
)
@model_argument
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--normal",
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="Normal images: name those that are nearest to IMAGE.",
)
@click.option(
    "--neighbors",
    "n_neighbors",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many of them to name.  [default: 5]",
)
@click.option(
    "--picture",
    metavar="FILE",
    callback=check_picture,
    help="Write a .png file: the image beside its anomaly map, and the nearest normal images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def inspect_command(
    model: str,
    image: str,
    normal: str | None,
    n_neighbors: int | None,
    picture: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show score and p-value of IMAGE, and which parts of MODEL object to it.

    The score is a sum over views and the discrepancy space; a part objects if the image has a lower
    score there than the calibration images have. Of the discrepancy space, the command shows each
    block: the error of its student on the image, and the median error on calibration images.

    With --normal, it names the images of a folder that are nearest to IMAGE in the features of the
    score. The model itself holds no pictures.
    """
    if n_neighbors is not None and normal is None:
        raise click.UsageError("--neighbors is for --normal FOLDER, whose images it counts.")
    if picture is not None:
        require("plot", "--picture", "leave --picture out")
    detector = load_for_files(model, **options)
    if picture is not None:
        require_maps(detector, None)
    with speaking_of_options():
        described = {"model": model, "path": image, **_describe(detector, image)}
    unreadable = Unreadable()
    described["neighbors"] = None
    if normal is not None:
        from skanomaly_vit.cli._neighbors import find_neighbors

        n = n_neighbors or _NEIGHBORS
        described["neighbors"] = find_neighbors(detector, image, normal, n, unreadable)
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(_lines(described)))
    if picture is not None:
        _draw(detector, described, picture)
        tell(f"Picture: {picture}")
    finish(unreadable, f"{image} inspected")


def _describe(detector: TransformalyDetector, image: str) -> dict[str, Any]:
    from skanomaly_vit.calibration._p_values import CalibrationScores

    parts = detector._score_parts([image])
    score = float(sum(values[0] for values in parts.values()))
    (calibrating, units), known = _calibration_parts(detector), CalibrationScores.of(detector)
    return {
        "score": score,
        "threshold": detector.offset_,
        "decision": score - detector.offset_,
        "flag": score < detector.offset_,
        "p_value": None if known is None else known.p_value(score),
        "n_calibrating": len(next(iter(calibrating.values()))),
        "parts": sorted(
            (
                _part(name, float(values[0]), calibrating[name], units)
                for name, values in parts.items()
            ),
            key=lambda part: (part["p_value"] or 0, part["score"]),
        ),
        "has_tiles": detector._fitted_framing.tiles is not None,
        "blocks": _blocks(detector, image),
    }


def _part(name: str, score: float, known: np.ndarray, units: np.ndarray | None) -> dict[str, Any]:
    """The score of a part of the model, among those of calibration images."""
    import numpy as np

    from skanomaly_vit.calibration._p_values import CalibrationScores

    if not len(known):
        return {"name": name, "score": score, "usual": None, "p_value": None}
    p_value = CalibrationScores(known, units).p_value(score)
    return {"name": name, "score": score, "usual": float(np.median(known)), "p_value": p_value}


def _calibration_parts(
    detector: TransformalyDetector,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Scores of calibration images in each part, from the features that the model keeps.

    And the units of these images, if one has several. There are no scores if there are too many
    tiles for the model to keep those of all images.
    """
    import numpy as np

    from skanomaly_vit.detector._fit_summary import holds_whole_images, n_images, shards_of_sample
    from skanomaly_vit.detector._fusion import score_images, several_of_a_unit

    summary, has_tiles = detector._fit_summary, detector._fitted_framing.tiles is not None
    held_out = None if summary is None else summary.held_out
    if (
        held_out is None
        or not n_images(held_out)
        or not holds_whole_images(held_out, of_tiles=has_tiles)
    ):
        return dict.fromkeys(detector.density_, np.empty(0)), None
    known = shards_of_sample(held_out)
    scores, units = score_images(detector.density_, detector.fusion_, known)
    return scores, several_of_a_unit(units)


def _blocks(detector: TransformalyDetector, image: str) -> list[dict[str, Any]]:
    """Error of each student on an image, and on calibration images; worst ratio first."""
    import numpy as np

    from skanomaly_vit._backbone.discrepancy import DISCREPANCY
    from skanomaly_vit.detector._fit_summary import n_images
    from skanomaly_vit.detector._fusion import sum_spaces

    if detector.distillation_ is None or DISCREPANCY not in detector.density_:
        return []
    inputs = detector._inputs_of(detector._open_images([image], on_error="raise"))
    batches = list(detector._extract(inputs))
    embedded = {space: np.concatenate([each[space] for each in batches]) for space in batches[0]}
    # Of its tiles, if it has any:
    worst = int(np.argmin(sum_spaces(detector._score([embedded]))))
    errors = embedded[DISCREPANCY][worst]
    summary = detector._fit_summary
    known = None
    if summary is not None and n_images(summary.held_out):
        known = np.median(summary.held_out[DISCREPANCY].rows, axis=0)
    found = [
        {
            "block": int(block),
            "error": float(errors[i]),
            "usual": None if known is None else float(known[i]),
            "ratio": None if known is None or known[i] == 0 else float(errors[i] / known[i]),
        }
        for i, block in enumerate(detector.distillation_.block_indices_)
    ]
    return sorted(found, key=lambda each: -(each["ratio"] or 0))


def _lines(of: dict[str, Any]) -> Iterator[str]:
    from skanomaly_vit._utils.provenance import printable

    yield printable(f"{of['path']}: {'flagged' if of['flag'] else 'passed'}")
    yield f"score     {of['score']:.4g} (threshold {of['threshold']:.4g}, higher = more normal)"
    if of["p_value"] is not None:
        yield (
            f"p-value   {of['p_value']:.4g}: about that share of normal images looks as abnormal "
            "as this one"
        )
    yield ""
    n = of["n_calibrating"]
    of_what = "the worst tile's score" if of["has_tiles"] else "the score"
    yield f"Parts of {of_what}, the one that objects most first ({n} calibration images known):"
    yield f"  {'part':<16} {'score':>9}  {'usual':>9}  {'p-value':>8}"
    for part in of["parts"]:
        cells = [_cell(part[key]) for key in ("score", "usual", "p_value")]
        yield "  {:<16} {:>9}  {:>9}  {:>8}".format(part["name"], *cells)
    if of["blocks"]:
        yield ""
        yield "Errors of the students, the most unusual block first:"
        yield f"  {'block':<16} {'error':>9}  {'usual':>9}  {'ratio':>8}"
        for block in of["blocks"]:
            cells = [_cell(block[key]) for key in ("error", "usual", "ratio")]
            yield "  {:<16} {:>9}  {:>9}  {:>8}".format(block["block"], *cells)
    yield ""
    if of["neighbors"] is None:
        yield "The model holds features of normal images, no pictures and no names. To see which"
        yield "normal images are nearest, add --normal FOLDER."
        return
    from skanomaly_vit.cli._neighbors import describe_neighbors

    yield from describe_neighbors(of["neighbors"])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _draw(detector: TransformalyDetector, of: dict[str, Any], picture: str) -> None:
    from skanomaly_vit.cli._pictures import save_display
    from skanomaly_vit.display import AnomalyMapDisplay

    image, neighbors = of["path"], of["neighbors"]

    def draw() -> AnomalyMapDisplay:
        if neighbors is None:
            return AnomalyMapDisplay.from_estimator(detector, [image])
        from matplotlib import pyplot as plt

        from skanomaly_vit.cli._neighbors import draw_neighbors

        nearest = neighbors["nearest"]
        figure = plt.figure(figsize=(max(6.8, 1.7 * len(nearest)), 6), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=[3, 2])
        ax = figure.add_subplot(rows[0])
        draw_neighbors(rows[1], nearest, detector.max_pixels)
        return AnomalyMapDisplay.from_estimator(detector, [image], ax=ax)

    save_display(draw, picture)
