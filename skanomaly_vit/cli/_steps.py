"""Steps that commands share: load a model, open the output, show progress, finish."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import UNREADABLE, MachineMismatch, given
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


def load(model: str, **options: Any) -> TransformalyDetector:
    """Load a detector onto this machine, with parameters from the options."""
    from skanomaly_vit.cli._machine import MachineError, bring_to_machine, set_machine
    from skanomaly_vit.detector import TransformalyDetector
    from skanomaly_vit.exceptions import ModelFileError

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


def describe(model: str) -> dict[str, Any]:
    """Read the model card, and add the versions of packages here."""
    from skanomaly_vit._utils.provenance import versions
    from skanomaly_vit.exceptions import ModelFileError
    from skanomaly_vit.persistence import model_card

    try:
        return {**model_card(model), "versions_here": versions()}
    except ModelFileError as error:
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


def summarize(described: dict[str, Any]) -> str:
    """Format the result of `describe` for people."""
    from skanomaly_vit._utils.certificates import Certificate
    from skanomaly_vit._utils.provenance import printable

    parameters, changed = described["parameters"], described["changed_parameters"]
    dtype = f" in {described['dtype']}" if described["dtype"] else ""  # not in older files
    inside = "in the file" if described["has_backbone"] else "not in the file"
    written, here = (
        ", ".join(f"{name} {version}" for name, version in described[key].items())
        for key in ("versions", "versions_here")
    )
    certificate = Certificate(
        rate=described["false_alarm_rate"],
        confidence=described["threshold_confidence"],
        n_images=described["n_calibrating"] or 0,
        n_units=described["n_calibration_units"] or 0,
        bound=described["false_alarm_bound"],
        bound_confidence=described["false_alarm_bound_confidence"],
    )
    is_recorded = described["n_calibrating"] is not None
    lines = {
        "file": f"{described['path']} ({described['file_size'] / 2**20:.1f} MiB)",
        "written": described["created"],
        "backbone": f"{described['backbone']}{dtype} ({inside})",
        "fingerprint": described["backbone_fingerprint"],
        "densities": ", ".join(f"{k} {v}" for k, v in described["densities"].items()),
        "students": f"{described['student'] or 'none'} {described['blocks'] or ''}".rstrip(),
        "images": f"{described['n_images']} "
        f"({described['n_images_held_out']} of them held out for the threshold)",
        "threshold": f"{described['threshold']:.6g} (a lower score is an anomaly)",
        "false alarms": certificate.describe_rate() if is_recorded else "not recorded",
        "calibration": certificate.describe_calibration() if is_recorded else "not recorded",
        "updates": "; ".join(map(_describe_update, described["updates"] or [])) or "none",
        "parameters": ", ".join(f"{name}={parameters.get(name)!r}" for name in changed)
        or "all default",
        "versions": written,
        "versions here": here,
    }
    # A file may come from anyone; its text must not steer the terminal.
    return "\n".join(f"{name + ':':<16}{printable(value)}" for name, value in lines.items())


def _describe_update(entry: dict[str, Any]) -> str:
    calibrate = f", {entry['n_calibrating']} of them calibrate" if entry["n_calibrating"] else ""
    return (
        f"{entry['date'][:10]} {entry['n_images']} images by {entry['what']}{calibrate} "
        f"({entry['digest'][:12]})"
    )
