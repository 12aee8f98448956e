"""The command ``inspect``: what a model has against one image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import (
    HARMLESS,
    check_picture,
    device_option,
    epilog,
    max_pixels_option,
    model_argument,
    require,
)
from skanomaly_vit.cli._steps import load_for_files, require_maps, speaking_of_options
from skanomaly_vit.cli._terminal import tell

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector


@click.command(
    "inspect",
    short_help="Show what the model has against an image.",
    epilog=epilog(
        "skanomaly inspect parts.skanomaly parts/new/17.png --picture why.png", note=HARMLESS
    ),
)
@model_argument
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--picture",
    metavar="FILE",
    callback=check_picture,
    help="Write a .png file: the image beside its anomaly map.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@device_option
@max_pixels_option
def inspect_command(
    model: str, image: str, picture: str | None, as_json: bool, **options: Any
) -> None:
    """Show score and p-value of IMAGE, and which parts of MODEL object to it.

    The score is a sum over views and the discrepancy space; a part objects if the image has a lower
    score there than the calibration images have. Of the discrepancy space, the command shows each
    block: the error of its student on the image, and the median error on calibration images.
    """
    if picture is not None:
        require("plot", "--picture", "leave --picture out")
    detector = load_for_files(model, **options)
    if picture is not None:
        require_maps(detector, None)
    with speaking_of_options():
        described = {"model": model, "path": image, **_describe(detector, image)}
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(_lines(described)))
    if picture is not None:
        _draw(detector, image, picture)
        tell(f"Picture: {picture}")


def _describe(detector: TransformalyDetector, image: str) -> dict[str, Any]:
    import numpy as np

    from skanomaly_vit.cli._p_values import known_p_values

    parts = detector._score_parts([image])
    score = float(sum(values[0] for values in parts.values()))
    calibrating = _calibration_parts(detector)
    return {
        "score": score,
        "threshold": detector.offset_,
        "decision": score - detector.offset_,
        "flag": score < detector.offset_,
        "p_value": known_p_values(detector._p_values_or_nan(np.array([score])))[0],
        "n_calibrating": len(next(iter(calibrating.values()))),
        "parts": sorted(
            (_part(name, float(values[0]), calibrating[name]) for name, values in parts.items()),
            key=lambda part: (part["p_value"] or 0, part["score"]),
        ),
        "blocks": _blocks(detector, image),
    }


def _part(name: str, score: float, known: np.ndarray) -> dict[str, Any]:
    """The score of a part of the model, among those of calibration images."""
    import numpy as np

    from skanomaly_vit.calibration import conformal_p_values

    if not len(known):
        return {"name": name, "score": score, "usual": None, "p_value": None}
    p_value = float(conformal_p_values(known, [score])[0])
    return {"name": name, "score": score, "usual": float(np.median(known)), "p_value": p_value}


def _calibration_parts(detector: TransformalyDetector) -> dict[str, np.ndarray]:
    """Scores of calibration images in each part, from the features that the model keeps."""
    import numpy as np

    from skanomaly_vit.detector._fit_summary import n_images, shards_of_sample
    from skanomaly_vit.detector._fusion import score_shards

    summary = detector._fit_summary
    if summary is None or not n_images(summary.held_out):
        return dict.fromkeys(detector.density_, np.empty(0))
    return score_shards(detector.density_, detector.fusion_, shards_of_sample(summary.held_out))


def _blocks(detector: TransformalyDetector, image: str) -> list[dict[str, Any]]:
    """Error of each student on an image, and on calibration images; worst ratio first."""
    import numpy as np

    from skanomaly_vit._backbone.discrepancy import DISCREPANCY
    from skanomaly_vit.detector._fit_summary import n_images

    if detector.distillation_ is None or DISCREPANCY not in detector.density_:
        return []
    passes, students = detector._scoring_passes(detector._open_images([image], on_error="raise"))
    errors = passes.extract(np.arange(1), students)[DISCREPANCY][0]
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
    yield f"Parts of the score, the one that objects most first ({n} calibration images known):"
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
    yield "The model holds features of normal images, not the images or their names: which normal"
    yield "images are nearest, it cannot tell."


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _draw(detector: TransformalyDetector, image: str, picture: str) -> None:
    from skanomaly_vit.cli._pictures import save_display
    from skanomaly_vit.display import AnomalyMapDisplay

    def draw() -> AnomalyMapDisplay:
        return AnomalyMapDisplay.from_estimator(detector, [image], titles=[image])

    save_display(draw, picture)
