"""Steps that commands share: load a model, open what is written, show progress, end."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from skanomaly_vit._program import UNREADABLE, MachineMismatch, given
from skanomaly_vit._terminal import Unreadable, tell

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


def unpickle(model: str) -> TransformalyDetector:
    from skanomaly_vit._model_file import ModelFileError, load_model

    try:
        return load_model(model)
    except ModelFileError as error:
        raise click.UsageError(str(error)) from error


def load(model: str, **options: Any) -> TransformalyDetector:
    """The detector, ready to work here as the options say."""
    detector = unpickle(model)
    from skanomaly_vit._model_file import MachineError, bring_to_machine, set_machine

    # A cache of the fit is left alone: scoring would fill it with the tokens of every image.
    set_machine(detector, memory=None, **given(**options))
    try:
        bring_to_machine(detector)
    except MachineError as error:
        raise MachineMismatch(str(error)) from error
    return detector


def show_fitting(detector: TransformalyDetector) -> None:
    """Have bars drawn on stderr while a detector is fitted, on a terminal."""
    if not sys.stderr.isatty() or detector.verbose:
        return
    if find_spec("rich") is None:
        tell("Fitting. For bars, pip install rich.")
        return
    import rich
    from sklearn.callback import ProgressBar

    rich.reconfigure(stderr=True)  # scikit-learn's bars use rich's own console
    detector.set_callbacks(ProgressBar())


def open_output(output: str | None, stack: ExitStack) -> BinaryIO:
    """The stream that a table goes to: a file, closed with the stack, or standard output."""
    if output is None:
        return sys.stdout.buffer
    return stack.enter_context(open(output, "wb"))


def finish(unreadable: Unreadable, summary: str) -> None:
    """End a command: say what was done, on a terminal or if some images were unreadable."""
    if unreadable.count:
        tell(f"{summary}; unreadable: {unreadable.count}")
        click.get_current_context().exit(UNREADABLE)
    if sys.stderr.isatty():
        tell(summary)


def summarize(described: dict[str, Any]) -> str:
    """What `describe_model` says, for people."""
    parameters, changed = described["parameters"], described["changed_parameters"]
    n_images = described["n_images"]
    lines = {
        "file": f"{described['path']} ({described['file_size'] / 2**20:.1f} MiB)",
        "backbone": described["backbone"],
        "fingerprint": described["backbone_fingerprint"],
        "feature spaces": ", ".join(described["spaces"]),
        "blocks": ", ".join(map(str, described["blocks"])) or "none",
        "images": f"{'unknown' if n_images is None else n_images} "
        f"({described['n_images_held_out']} of them held out for the threshold)",
        "threshold": f"{described['threshold']:.6g} (a lower score is an anomaly)",
        "parameters": ", ".join(f"{name}={parameters[name]!r}" for name in changed)
        or "all default",
        "versions here": ", ".join(f"{k} {v}" for k, v in described["versions_here"].items()),
    }
    return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())
