"""The command line ``skanomaly``: fit, score, map, report, export and info, and those of files.

Commands import slow packages (torch, scikit-learn) only when they need them, so that ``--help`` and
usage errors answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit._utils.version import __version__
from skanomaly_vit.cli._auditing import audit_command
from skanomaly_vit.cli._backbones import backbones
from skanomaly_vit.cli._comparing import compare_command
from skanomaly_vit.cli._deciding import threshold_command
from skanomaly_vit.cli._describing import describe, summarize
from skanomaly_vit.cli._detectors import load_detector
from skanomaly_vit.cli._drifting import drift_command
from skanomaly_vit.cli._evaluating import evaluate_command
from skanomaly_vit.cli._inputs import STDIN, count_inputs, list_inputs
from skanomaly_vit.cli._inspecting import inspect_command
from skanomaly_vit.cli._mapping import map_command
from skanomaly_vit.cli._options import (
    EXIT_CODES,
    HARMLESS,
    MachineMismatch,
    Program,
    batch_size_option,
    check_format,
    check_not_model,
    check_output,
    device_option,
    epilog,
    given,
    images_argument,
    jobs_option,
    max_pixels_option,
    model_argument,
    null_option,
    recipe_options,
    require,
)
from skanomaly_vit.cli._outputs import open_output
from skanomaly_vit.cli._p_values import known_p_values
from skanomaly_vit.cli._regions import region_options
from skanomaly_vit.cli._reporting import report_command
from skanomaly_vit.cli._serving import serve_command
from skanomaly_vit.cli._steps import (
    finish,
    load,
    show_fitting,
    speaking_of_options,
)
from skanomaly_vit.cli._tables import FORMATS, FlaggedTable, Row, TopTable, open_table
from skanomaly_vit.cli._terminal import (
    Unreadable,
    progress_bar,
    tell,
    tell_loading,
    told_warnings,
    uninterrupted,
)
from skanomaly_vit.cli._tuning import tune_command
from skanomaly_vit.cli._updating import update_command
from skanomaly_vit.cli._verifying import verify_command
from skanomaly_vit.cli._watching import watch_command

if TYPE_CHECKING:
    from skanomaly_vit._images.score_stream import ImageScore
    from skanomaly_vit.detector import TransformalyDetector


# Two to learn a spread from, one to hold out.
_FEWEST = 3

_FIT_NOTE = "Exit code 2: some images are unreadable; the command lists them all and fits nothing."


@click.group(
    "skanomaly",
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=epilog(
        "skanomaly fit parts/good -o parts.skanomaly",
        "skanomaly score parts.skanomaly parts/new -o scores.csv",
        note=EXIT_CODES,
    ),
)
@click.version_option(__version__, prog_name="skanomaly")
def main() -> None:
    """Find the images that do not belong, knowing only normal ones."""


@main.command(
    "fit",
    short_help="Learn from normal images.",
    epilog=epilog(
        "skanomaly fit parts/good -o parts.skanomaly --contamination 0.01 --jobs -1", note=_FIT_NOTE
    ),
)
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@click.option(
    "-o", "--output", required=True, metavar="FILE", callback=check_output, help="The model file."
)
@recipe_options
@region_options
@click.option(
    "--contamination",
    type=click.FloatRange(0, 0.5, min_open=True),
    metavar="SHARE",
    help="Share of normal images that may be flagged.  [default: 0.05]",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Share of deployments in which that holds.  [default: it holds on average]",
)
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Checkpoints; after an interruption, the same command resumes from them.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log progress instead of showing bars.")
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def _fit(
    images: tuple[str, ...],
    output: str,
    seed: int,
    confidence: float | None,
    **options: Any,
) -> None:
    """Learn from normal IMAGES: files, and folders with all images below them.

    The command decodes every image first: if some are unreadable, it lists all of them and fits
    nothing. The model does not keep options about this machine (--device, --jobs, --memory,
    --checkpoint).
    """
    unreadable = Unreadable()
    paths = list(list_inputs(images, unreadable))
    if len(paths) < _FEWEST:
        raise click.UsageError(
            f"a fit needs {_FEWEST} images at the very least, and some hundred for a steady "
            f"threshold; found {len(paths)}."
        )
    tell_loading(f"the backbone, for {len(paths)} images")
    from skanomaly_vit.cli._certifying import certify, require_calibration
    from skanomaly_vit.cli._machine import MachineError, try_backbone
    from skanomaly_vit.cli._scoring import select_readable
    from skanomaly_vit.cli._sight import describe_sight
    from skanomaly_vit.detector import TransformalyDetector
    from skanomaly_vit.distillation._checkpoints import kept_checkpoints

    detector = TransformalyDetector(random_state=seed, **given(**options))
    try:
        try_backbone(detector)
        if confidence is not None:
            require_calibration(detector, confidence, len(paths))
        select_readable(paths, detector, unreadable)
        if unreadable.count:
            finish(unreadable, f"nothing was fitted to the {len(paths)} images")
        show_fitting(detector)
        # A failure to write the model must not cost the fit.
        with kept_checkpoints():
            with told_warnings():
                detector.fit(paths)
                if confidence is not None:
                    certify(detector, confidence)
            detector.save(output)
    except MachineError as error:
        raise MachineMismatch(str(error)) from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        tell(_how_to_go_on(detector))
        raise
    tell(f"Fitted on {len(paths)} images, threshold {detector.offset_:.6g}: {output}")
    if sight := describe_sight(detector, paths):
        tell(sight)


def _how_to_go_on(detector: TransformalyDetector) -> str:
    if detector.checkpoint_dir is None:
        return "Stopped; nothing is kept. With --checkpoint FOLDER, a fit can resume."
    folder = os.fspath(detector.checkpoint_dir)
    return f"Stopped. The same command resumes from the last checkpoint in {folder!r}."


@main.command(
    "score",
    short_help="Score images, flag anomalies.",
    epilog=epilog(
        "skanomaly score parts.skanomaly parts/new -o scores.csv",
        "find parts -name '*.png' -print0 | skanomaly score parts.skanomaly - -0 > scores.csv",
        note=HARMLESS,
    ),
)
@model_argument
@images_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=check_output,
    help="A .csv, .jsonl, .parquet or .xlsx file.  [default: csv on standard output]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="Format of the table.  [default: the suffix of FILE]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write the N most abnormal images only, the most abnormal first, at the end.",
)
@click.option("--only-flagged", is_flag=True, help="Write anomalies only.")
@click.option(
    "--safe-csv",
    "safe",
    is_flag=True,
    help="Put ' before paths that a spreadsheet would run as a formula.",
)
@null_option
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def _score(
    model: str,
    images: tuple[str, ...],
    output: str | None,
    kind: str | None,
    top: int | None,
    only_flagged: bool,
    safe: bool,
    null: bool,
    **options: Any,
) -> None:
    """Score IMAGES: files, folders with all images below them, or - for paths on standard input.

    The table has the columns path, score (higher = more normal), decision (score - threshold),
    flag (true for an anomaly: a negative decision) and p_value (small = abnormal; empty if the
    model has no calibration images). The command writes rows batch by batch. It reports unreadable
    images on standard error and gives them no row.
    """
    kind = check_format(output, kind)
    check_not_model(output, model)
    if safe and kind != "csv":
        raise click.UsageError(f"--safe-csv is for csv; the format is {kind}, which runs nothing.")
    unreadable = Unreadable()
    paths = list_inputs(images, unreadable, null)
    detector = load_detector(model, on_error="nan", **options)
    # Do not wait for paths that are still to come.
    chunk_size = detector.batch_size if STDIN in images else None
    n_scored = n_flagged = 0
    with ExitStack() as stack:
        stream = open_output(output, kind, stack)
        table = open_table(stream, kind, safe=safe)
        table = table if top is None else TopTable(table, top)
        table = stack.enter_context(FlaggedTable(table) if only_flagged else table)
        # On a terminal, the rows themselves show the progress.
        shown = output is not None or not sys.stdout.isatty()
        bar = stack.enter_context(progress_bar("scoring", count_inputs(images), shown=shown))
        try:
            scores = detector.iter_scores(paths, chunk_size=chunk_size)
            for image in stack.enter_context(closing(scores)):
                bar.update()
                if image.cause is not None:
                    unreadable(str(image.path), image.cause)
                    continue
                row = _row(image, detector.offset_)
                with uninterrupted():
                    table.add([row])
                    n_scored += 1
                n_flagged += row.flag
        except KeyboardInterrupt:
            tell(f"Stopped after {n_scored} images, whose rows are complete.")
            raise
    finish(unreadable, f"{n_scored} images scored, {n_flagged} of them flagged")


main.add_command(map_command)


def _row(image: ImageScore, threshold: float) -> Row:
    decision = float(image.score - threshold)
    (p_value,) = known_p_values([image.p_value])
    return Row(str(image.path), image.score, decision, decision < 0, p_value)


main.add_command(report_command)


@main.command(
    "export",
    short_help="Write an ONNX file, to score without torch.",
    epilog=epilog(
        "skanomaly export parts.skanomaly -o parts.onnx",
        "skanomaly export parts.skanomaly -o fast.onnx --quantize int8 --calibration parts/more",
        note=HARMLESS,
    ),
)
@model_argument
@click.option(
    "-o", "--output", required=True, metavar="FILE", callback=check_output, help="An .onnx file."
)
@click.option(
    "--map-method",
    type=click.Choice(["discrepancy", "features", "both"]),
    help="Source of the maps.  [default: the spaces of the score]",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Compute matrix products with integers, about twice as fast; needs --calibration.",
)
@click.option(
    "--calibration",
    multiple=True,
    type=click.Path(exists=True),
    metavar="PATH",
    help="Normal images that the model has not learned from, a file or folder: with --quantize, "
    "they set threshold and p-values. May be repeated.",
)
@max_pixels_option
@jobs_option
def _export(
    model: str,
    output: str,
    map_method: str | None,
    quantize: str | None,
    calibration: tuple[str, ...],
    **options: Any,
) -> None:
    """Write a model as one ONNX graph: from normalized pixels to score, p-value and map.

    The command runs the graph once in ONNX Runtime, and writes it only if its scores match the
    model's. In int8 they do not: threshold and p-values are then of the scores that the graph
    gives to the images of --calibration.
    """
    if not output.lower().endswith(".onnx"):
        raise click.UsageError(f"{output!r} does not end in .onnx, as an ONNX file must.")
    if (quantize is None) != (not calibration):
        raise click.UsageError(
            "--quantize int8 and --calibration go together: the images set threshold and p-values "
            "of the file in int8."
        )
    require("onnx", "an export")
    unreadable = Unreadable()
    paths = list(list_inputs(calibration, unreadable))
    detector = load(model, device="cpu", **options)
    from skanomaly_vit.cli._scoring import select_readable
    from skanomaly_vit.onnx import export_onnx

    select_readable(paths, detector, unreadable)
    if unreadable.count:
        finish(unreadable, "nothing was exported")
    with speaking_of_options(), told_warnings():
        export_onnx(
            detector,
            output,
            map_method=map_method,
            quantize=quantize,
            calibration_images=paths or None,
        )
    tell(f"Exported {model}: {output}")


@main.command(
    "info",
    short_help="Describe a model.",
    epilog=epilog("skanomaly info parts.skanomaly", note=HARMLESS),
)
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def _info(model: str, as_json: bool) -> None:
    """Describe a model, without loading its backbone."""
    described = describe(model)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    click.echo(summarize(described))


for _command in (
    backbones,
    evaluate_command,
    inspect_command,
    serve_command,
    watch_command,
    update_command,
    tune_command,
    threshold_command,
    audit_command,
    drift_command,
    compare_command,
    verify_command,
):
    main.add_command(_command)
