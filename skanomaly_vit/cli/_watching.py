"""The command ``watch``: images are scored as they arrive in a folder."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from skanomaly_vit.cli._detectors import load_scorer
from skanomaly_vit.cli._options import (
    HARMLESS,
    UNREADABLE,
    batch_size_option,
    check_not_model,
    check_output,
    device_option,
    epilog,
    max_pixels_option,
    model_argument,
    require,
)
from skanomaly_vit.cli._outputs import open_to_append
from skanomaly_vit.cli._terminal import (
    Unreadable,
    stopping_at_signals,
    tell,
    uninterrupted,
)

if TYPE_CHECKING:
    from skanomaly_vit.cli._service.flagged import Keep
    from skanomaly_vit.cli._service.score_log import ScoreLog

#: Images of a pass: an image that has just arrived should not wait for many others.
_BATCH = 8


@click.command(
    "watch",
    short_help="Score images as they arrive in a folder.",
    epilog=epilog(
        "skanomaly watch parts.skanomaly inbox -o scores.csv --flagged suspects",
        "skanomaly watch parts.onnx /mnt/camera -o scores.csv --poll 2",
        note=HARMLESS,
    ),
)
@model_argument
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    callback=check_output,
    help="A .csv file, which grows; what has a row there is not scored again.",
)
@click.option(
    "--flagged",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Folder for flagged images, under their paths below the watched one.",
)
@click.option(
    "--copy/--link",
    "copy",
    default=None,
    help="Copy flagged images, or make symbolic links.  [default: --copy]",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="A file is complete if it does not change for so long, or is closed.",
)
@click.option(
    "--poll",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Look at the folder so often; for network drives, which tell of no changes.",
)
@click.option("--once", is_flag=True, help="Score what is there and has no row yet, and end.")
@device_option
@batch_size_option
@max_pixels_option
def watch_command(
    model: str,
    folder: str,
    output: str,
    flagged: str | None,
    copy: bool | None,
    settle: float,
    poll: float | None,
    once: bool,
    device: str | None,
    batch_size: int | None,
    max_pixels: int | None,
) -> None:
    """Score each image that arrives in FOLDER or below it, with a .skanomaly or .onnx file.

    A row has the columns of `skanomaly score`, the cause if the image is unreadable, the digest of
    its content, size and time of the file, and the time of the row. The table is all that the
    command knows after a restart: an image is the same if path and content are. SIGTERM and Ctrl-C
    end it after the current batch.
    """
    if not output.lower().endswith(".csv"):
        raise click.UsageError(f"{output!r} does not end in .csv, as the table must.")
    check_not_model(output, model)
    _check_flagged(folder, flagged, copy)
    require("serve", "a watch")
    unreadable = Unreadable()
    with ExitStack() as stack:
        log = _open_log(output, stack)
        scorer = load_scorer(model, device, max_pixels=max_pixels)
        if not log.is_of(scorer.threshold):
            raise click.UsageError(
                f"the scores in {output!r} are of another model, or of one with another threshold: "
                f"score - decision is {log.threshold:.6g} there, and the threshold of this model "
                f"is {scorer.threshold:.6g}. Pass another name as -o."
            )
        from skanomaly_vit.cli._service.hot_folder import HotFolder

        hot = HotFolder(
            folder,
            scorer,
            log,
            keep=_keeper(flagged, copy),
            settle=settle,
            poll=poll,
            batch_size=batch_size or _BATCH,
            max_pixels=scorer.max_pixels,
            on_unreadable=unreadable,
            writing=uninterrupted,
        )
        stop = stack.enter_context(stopping_at_signals())
        if not once:
            tell(f"Watching {folder}; {log.n_rows} rows in {output}")
        hot.run(stop, once=once)
    done = hot.counts
    tell(
        f"{done.scored} images scored, {done.flagged} of them flagged; "
        f"unreadable: {done.unreadable}"
    )
    if once and unreadable.count:
        click.get_current_context().exit(UNREADABLE)


def _check_flagged(folder: str, flagged: str | None, copy: bool | None) -> None:
    if flagged is None:
        if copy is not None:
            raise click.UsageError("--copy and --link are for --flagged FOLDER, which is missing.")
        return
    inside, outside = os.path.realpath(flagged), os.path.realpath(folder)
    if os.path.commonpath([inside, outside]) == outside:
        raise click.UsageError(
            f"--flagged {flagged!r} is inside of {folder!r}, where its images would be scored "
            "again; pass a folder elsewhere."
        )


def _open_log(output: str, stack: ExitStack) -> ScoreLog:
    from skanomaly_vit.cli._service.score_log import ScoreLog

    stream = open_to_append(output, stack)
    try:
        return ScoreLog(stream)
    except ValueError as error:
        raise click.UsageError(f"{output!r}: {error}.") from error


def _keeper(flagged: str | None, copy: bool | None) -> Keep | None:
    from skanomaly_vit.cli._service.flagged import copier, linker

    if flagged is None:
        return None
    return linker(flagged) if copy is False else copier(flagged)
