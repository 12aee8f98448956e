"""Steps that commands share: load a model, open the output, show progress, finish."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import UNREADABLE, MachineMismatch, given
from skanomaly_vit.cli._terminal import Unreadable, tell, tell_loading, told_warnings

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


def is_onnx(model: str) -> bool:
    """Whether a model is an ONNX file, by its name."""
    return model.lower().endswith(".onnx")


def refuse_onnx(model: str) -> None:
    """Refuse an ONNX file where a command needs more than it holds."""
    if is_onnx(model):
        raise click.UsageError(
            f"{model!r} is an ONNX file, which score, evaluate, info, serve and watch take; this "
            "command needs the .skanomaly file that it was exported from."
        )


def load(model: str, **options: Any) -> TransformalyDetector:
    """Load a detector onto this machine, with parameters from the options.

    From here on, the command tells its warnings as messages.
    """
    refuse_onnx(model)
    tell_loading(model)
    from skanomaly_vit.cli._machine import MachineError, bring_to_machine, set_machine
    from skanomaly_vit.detector import TransformalyDetector
    from skanomaly_vit.exceptions import ModelFileError

    click.get_current_context().with_resource(told_warnings())
    try:
        detector = TransformalyDetector.load(model)
    except ModelFileError as error:
        raise click.UsageError(str(error)) from error
    set_machine(detector, **given(**options))
    try:
        bring_to_machine(detector)
    except MachineError as error:
        raise MachineMismatch(str(error)) from error
    return detector


def load_for_files(model: str, **options: Any) -> TransformalyDetector:
    """Load a detector that scores image files; one of flattened rows does not."""
    detector = load(model, **options)
    if detector.image_shape is not None:
        raise click.UsageError(
            f"{model!r} was fitted on rows of a table (image_shape={detector.image_shape}), and "
            "this command reads image files; score such rows in Python "
            "(TransformalyDetector.load), or fit a model on image files."
        )
    return detector


#: What messages of Python name -> the option of a command that it is.
_OPTIONS = {
    "known_images='leave_out'": "add --leave-out-known",
    "calibration_images are": "--calibration gives",
    "Export without quantize": "Export without --quantize",
    "more normal images (calibrate)": "more images marked fine to `skanomaly update`",
}


@contextmanager
def speaking_of_options() -> Iterator[None]:
    """Turn a ValueError into a message of the command, which names its options."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, option in _OPTIONS.items():
            message = message.replace(name, option)
        raise click.ClickException(message) from error


def require_maps(detector: TransformalyDetector, method: str | None) -> None:
    """Raise unless the detector has maps by this method, before any image is read."""
    try:
        detector._map_collector(method)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def show_fitting(detector: TransformalyDetector) -> None:
    """Show bars on stderr while a detector is fitted, on a terminal."""
    if not sys.stderr.isatty() or detector.verbose:
        return
    from skanomaly_vit._utils.progress_bar import ProgressBar

    detector.set_callbacks(ProgressBar())


def finish(unreadable: Unreadable, summary: str) -> None:
    """End a command with a summary, on a terminal or if some images were unreadable."""
    if unreadable.count:
        tell(f"{summary}; unreadable: {unreadable.count}")
        click.get_current_context().exit(UNREADABLE)
    if sys.stderr.isatty():
        tell(summary)
