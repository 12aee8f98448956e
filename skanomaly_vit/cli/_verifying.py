"""The command ``verify``: whether a model scores here as it did where it was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import (
    HARMLESS,
    MachineMismatch,
    batch_size_option,
    device_option,
    epilog,
    jobs_option,
    model_argument,
)
from skanomaly_vit.cli._steps import load

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command(
    "verify",
    short_help="Check that a model scores here as where it was saved.",
    epilog=epilog(
        "skanomaly verify parts.skanomaly",
        "skanomaly verify parts.onnx --json",
        note="Exit code 3: the scores differ by more than the tolerance. " + HARMLESS,
    ),
)
@model_argument
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="SD",
    help="Largest difference of a score, in standard deviations of the calibration scores.  "
    "[default: 0.001; in bfloat16 0.1; of an ONNX file 0.005]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@device_option
@jobs_option
@batch_size_option
def verify_command(model: str, tolerance: float | None, as_json: bool, **options: Any) -> None:
    """Compare this machine with the one that saved MODEL, or exported it.

    A model carries three small images and what each stage of scoring gave for them: decoding,
    resizing, backbone, students and densities. The command computes them again, and says by how
    much the scores differ and which stage is the first to differ.
    """
    detector = _load(model, **options)
    try:
        verified = detector.verify(tolerance=tolerance)
    except ValueError as error:
        raise click.ClickException(f"{model!r}: {error}") from error
    if as_json:
        click.echo(json.dumps({"model": model, **_plain(verified)}, indent=2))
    else:
        click.echo("\n".join(_lines(model, verified)))
    if not verified["same"]:
        raise MachineMismatch(
            f"{model!r} scores otherwise here than where it was saved; its threshold does not "
            "hold here. Install the versions that `skanomaly info` shows, or fit here."
        )


def _load(model: str, **options: Any) -> Any:
    if model.lower().endswith(".onnx"):
        from skanomaly_vit.cli._detectors import load_onnx

        return load_onnx(model, **options)
    return load(model, **options)


def _plain(verified: Mapping[str, Any]) -> dict[str, Any]:
    from skanomaly_vit._utils.stages import finite

    return {**verified, "difference": finite(verified["difference"])}


def _lines(model: str, verified: Mapping[str, Any]) -> Iterator[str]:
    from skanomaly_vit._utils.provenance import printable
    from skanomaly_vit._utils.stages import rounded_up

    name, unit = printable(model), "standard deviations of the calibration scores"
    difference = verified["difference"]
    if verified["same"]:
        extent = (
            "same to the bit" if difference == 0 else f"same to {rounded_up(difference)} {unit}"
        )
    else:
        extent = (
            f"differs by {difference:.2g} {unit} (at most {verified['tolerance']:g} is the same)"
        )
    yield f"{name}: {extent}"
    first = [stage for stage in verified["stages"] if stage["name"] == verified["first"]]
    for stage in first:
        what = "to round otherwise" if stage["same"] else "to differ"
        yield f"The first stage {what} is {stage['name']}."
    for stage in verified["stages"]:
        yield f"  {stage['name']:<11}{_describe(stage)}"


def _describe(stage: Mapping[str, Any]) -> str:
    from skanomaly_vit._utils.stages import rounded_up

    if not stage["n_compared"]:
        return "not compared: the file holds no features of images of the fit"
    verdict, difference = "same" if stage["same"] else "differs", stage["difference"]
    if difference is None:
        return f"{verdict}: a value is not a number"
    if difference == 0 and stage["same"]:
        return f"{verdict} to the bit"
    return f"{verdict}, by up to {rounded_up(difference)} {stage['unit']}"
