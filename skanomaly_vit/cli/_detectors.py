"""Detectors of image files: of a model file or an ONNX file, the latter without torch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import given, require
from skanomaly_vit.cli._steps import is_onnx, load_for_files, require_maps
from skanomaly_vit.cli._terminal import tell_loading

if TYPE_CHECKING:
    from skanomaly_vit.cli._service.scorers import Scorer


def load_detector(model: str, *, device: str | None, **options: Any) -> Any:
    """Load the detector of a model for image files; by the suffix .onnx, without torch."""
    if not is_onnx(model):
        return load_for_files(model, device=device, **options)
    detector = load_onnx(model, device, **options)
    if detector.image_shape is not None:
        raise click.UsageError(
            f"{model!r} was fitted on rows of a table (image_shape={detector.image_shape}), and "
            "this command takes image files; score such rows in Python (OnnxDetector.load)."
        )
    return detector


def load_scorer(model: str, device: str | None, **options: Any) -> Scorer:
    """Load the scorer of a model for the line."""
    detector = load_detector(model, device=device, **options)
    from skanomaly_vit.cli._service.scorers import scorer_of

    return scorer_of(detector)


def require_any_maps(detector: Any) -> None:
    """Raise unless a detector has maps, before any image is read."""
    from skanomaly_vit.onnx import OnnxDetector

    if not isinstance(detector, OnnxDetector):
        require_maps(detector, None)
        return
    try:
        detector._require_maps()
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def load_onnx(model: str, device: str | None, **options: Any) -> Any:
    """Load the detector of an ONNX file, without torch."""
    if device not in (None, "auto", "cpu"):
        raise click.UsageError(
            f"--device {device} is for .skanomaly files; an ONNX file is computed on the CPU. "
            "Leave --device out, or pass the model that was exported."
        )
    require("onnx:runtime", "an ONNX file")
    tell_loading(model)
    from skanomaly_vit.exceptions import ModelFileError
    from skanomaly_vit.onnx import OnnxDetector

    try:
        return OnnxDetector.load(model, **given(**options))
    except ModelFileError as error:
        raise click.UsageError(str(error)) from error


def digest_of(model: str) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(model, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
