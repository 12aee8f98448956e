"""The command ``audit``: wrong images among those to learn from."""

from __future__ import annotations

import json
from typing import Any

import click

from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._options import (
    MachineMismatch,
    batch_size_option,
    device_option,
    epilog,
    given,
    jobs_option,
    max_pixels_option,
    recipe_options,
)
from skanomaly_vit.cli._regions import region_options
from skanomaly_vit.cli._steps import finish, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable, tell_loading, told_warnings

_NOTE = "Exit code 2: some images are unreadable; the command lists them all and audits nothing."


@click.command(
    "audit",
    short_help="Look for mistakes among normal images.",
    epilog=epilog("skanomaly audit parts/good --top 20", note=_NOTE),
)
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of images to list, the most suspicious first.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of fits; each leaves out an equal share of the images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per image, of all.")
@recipe_options
@region_options
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def audit_command(
    images: tuple[str, ...], top: int, folds: int, as_json: bool, seed: int, **options: Any
) -> None:
    """Look for images that do not belong among IMAGES, which should be normal.

    The command needs no model: it fits several, each without a share of the images, and each scores
    what it has left out. Look at the first images of the list, remove the wrong ones, and fit.
    """
    unreadable = Unreadable()
    paths = list(list_inputs(images, unreadable))
    if len(paths) < 2 * folds:
        raise click.UsageError(
            f"{folds} fits need at least {2 * folds} images, and some hundred to compare well; "
            f"found {len(paths)}. Pass more images, or fewer --folds."
        )
    tell_loading(f"the backbone, for {len(paths)} images")
    from skanomaly_vit.cli._machine import MachineError, try_backbone
    from skanomaly_vit.cli._scoring import select_readable
    from skanomaly_vit.detector import TransformalyDetector

    detector = TransformalyDetector(random_state=seed, **given(**options))
    try:
        try_backbone(detector)
    except MachineError as error:
        raise MachineMismatch(str(error)) from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    select_readable(paths, detector, unreadable)
    if unreadable.count:
        finish(unreadable, f"nothing was audited of {len(paths)} images")
    with speaking_of_options(), told_warnings():
        found = detector.audit(paths, cv=folds)
    if as_json:
        for i in found.order:
            click.echo(json.dumps({"path": paths[i], "score": float(found.scores[i])}))
        return
    from skanomaly_vit._utils.provenance import printable

    click.echo("Most suspicious first. Score: interquartile ranges from the median of others.")
    for i in found.order[:top]:
        click.echo(f"{found.scores[i]:>9.2f}  {printable(paths[i])}")
