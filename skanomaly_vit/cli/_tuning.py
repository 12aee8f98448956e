"""The command ``tune``: known defects weigh the feature spaces of a model."""

from __future__ import annotations

import json
from typing import Any

import click

from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._options import (
    batch_size_option,
    check_not_model,
    check_output,
    device_option,
    epilog,
    jobs_option,
    max_pixels_option,
    model_argument,
)
from skanomaly_vit.cli._steps import finish, load_for_files, speaking_of_options, told_warnings
from skanomaly_vit.cli._terminal import Unreadable, tell

_NOTE = "Exit code 2: some images are unreadable; the command lists them all and writes nothing."


@click.command(
    "tune",
    short_help="Weigh feature spaces by a few known defects.",
    epilog=epilog(
        "skanomaly tune parts.skanomaly parts/known_defects -o tuned.skanomaly", note=_NOTE
    ),
)
@model_argument
@click.argument("defects", nargs=-1, required=True, type=click.Path(exists=True))
@click.option(
    "-o", "--output", required=True, metavar="NEW", callback=check_output, help="The new model."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def tune_command(
    model: str, defects: tuple[str, ...], output: str, as_json: bool, **options: Any
) -> None:
    """Weigh the feature spaces of MODEL by known DEFECTS: files, or folders of images.

    One to some twenty are enough. They teach weights alone: densities, students and the images that
    set the threshold stay those of normal images, and the rate of false alarms holds. Each run
    begins from equal weights, so pass all known defects. Measure before and after with `skanomaly
    compare` on other defects.
    """
    check_not_model(output, model)
    unreadable = Unreadable()
    paths = list(list_inputs(defects, unreadable))
    if not paths:
        raise click.UsageError("there are no images of defects; pass files, or folders of images.")
    from skanomaly_vit.cli._scoring import select_readable

    detector = load_for_files(model, **options)
    select_readable(paths, detector, unreadable)
    if unreadable.count:
        finish(unreadable, f"nothing was learned from {len(paths)} images")
    with speaking_of_options(), told_warnings():
        detector.tune_fusion(paths)
    detector.save(output)
    described = {"model": output, "n_defects": len(paths), "weights": detector.fusion_weights_,
                 "threshold": detector.offset_}  # fmt: skip
    click.echo(json.dumps(described, indent=2) if as_json else _text(described))
    tell(f"Tuned {model}: {output}")


def _text(described: dict[str, Any]) -> str:
    n_defects = described["n_defects"]
    lines = [f"Weights of feature spaces, by {n_defects} known defects; 1 each without them"]
    ordered = sorted(described["weights"].items(), key=lambda item: -item[1])
    lines += [f"{weight:>8.2f}  {space}" for space, weight in ordered]
    return "\n".join([*lines, f"Threshold {described['threshold']:.6g}"])
