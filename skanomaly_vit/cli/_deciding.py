"""The command ``threshold``: another rate of false alarms, without another fit."""

from __future__ import annotations

import warnings
from typing import Any

import click

from skanomaly_vit.cli._options import (
    HARMLESS,
    check_not_model,
    check_output,
    epilog,
    model_argument,
)
from skanomaly_vit.cli._steps import load, speaking_of_options
from skanomaly_vit.cli._terminal import tell

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(
    "threshold",
    short_help="Move the threshold to another rate of false alarms.",
    epilog=epilog(
        "skanomaly threshold parts.skanomaly --false-alarms 0.01 -o strict.skanomaly",
        note=HARMLESS,
    ),
)
@model_argument
@click.option(
    "-o", "--output", required=True, metavar="NEW", callback=check_output, help="The new model."
)
@click.option(
    "--false-alarms",
    required=True,
    type=_SHARE,
    metavar="SHARE",
    help="Share of normal images that may be flagged.",
)
@click.option(
    "--confidence",
    type=_SHARE,
    metavar="SHARE",
    help="Share of deployments in which that holds.  [default: it holds on average]",
)
def threshold_command(
    model: str, output: str, false_alarms: float, confidence: float | None
) -> None:
    """Write MODEL with another threshold; scores stay as they are.

    The calibration images in the model tell where the threshold lies. If they are too few for the
    rate, nothing is written.
    """
    check_not_model(output, model)
    detector = load(model, device="cpu")
    before: list[Any] = [detector.offset_, detector._certificate()]
    from skanomaly_vit.exceptions import CalibrationWarning

    with speaking_of_options(), warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        try:
            detector.set_threshold(target_fpr=false_alarms, confidence=confidence)
        except CalibrationWarning as warning:
            raise click.ClickException(f"nothing was written: {warning}") from warning
    detector.save(output)
    for name, offset, certificate in (
        ("before", *before),
        ("after", detector.offset_, detector._certificate()),
    ):
        click.echo(f"{name}: threshold {offset:.6g}, {certificate.describe_rate()}")
        click.echo(f"{'':<{len(name)}}  {certificate.describe_calibration()}")
    tell(f"Threshold {detector.offset_:.6g}: {output}")
