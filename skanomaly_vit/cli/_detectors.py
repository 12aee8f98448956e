"""Detectors for the line: of a model file or an ONNX file, the latter without torch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import given, require
from skanomaly_vit.cli._steps import load_for_files

if TYPE_CHECKING:
    from skanomaly_vit.cli._service.scorers import Scorer


def load_scorer(model: str, device: str | None, **options: Any) -> Scorer:
    """Load the scorer of a model; by the suffix .onnx, without torch."""
    if model.lower().endswith(".onnx"):
        detector = load_onnx(model, device, **options)
        if detector.image_shape is not None:
            raise click.UsageError(
                f"{model!r} was fitted on rows of a table (image_shape={detector.image_shape}), "
                "and this command takes image files; score such rows in Python "
                "(OnnxDetector.load)."
            )
    else:
        detector = load_for_files(model, device=device, **options)
    from skanomaly_vit.cli._service.scorers import scorer_of

    return scorer_of(detector)


def load_onnx(model: str, device: str | None, **options: Any) -> Any:
    """Load the detector of an ONNX file, without torch."""
    if device not in (None, "auto", "cpu"):
        raise click.UsageError(
            f"--device {device} is for .skanomaly files; an ONNX file is computed on the CPU. "
            "Leave --device out, or pass the model that was exported."
        )
    require("runtime", "an ONNX file")
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
