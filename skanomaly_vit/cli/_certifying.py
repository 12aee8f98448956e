"""Thresholds with a confidence: how many images they take, and how they are set after a fit."""

from __future__ import annotations

import math

import click
import numpy as np

from skanomaly_vit._backbone.image_estimator import share_out
from skanomaly_vit.calibration._thresholds import units_needed
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.detector._recipes import resolve


def require_calibration(detector: TransformalyDetector, confidence: float, n_images: int) -> None:
    """Raise before a fit that would hold out too few images."""
    rate = detector.contamination
    needed = units_needed(rate, confidence)
    if _n_calibrating(detector, n_images) >= needed:
        return
    in_all = needed
    while _n_calibrating(detector, in_all) < needed:
        in_all += 1
    raise click.UsageError(
        f"a false-alarm rate of at most {rate:g} with a confidence of {confidence:g} takes "
        f"{needed} held-out images, which a fit of {in_all} images has; found {n_images}. Pass "
        "more images, a higher --contamination, or a lower --confidence."
    )


def certify(detector: TransformalyDetector, confidence: float) -> None:
    """Set the threshold at the rate of the fit, with a confidence."""
    try:
        detector.set_threshold(target_fpr=detector.contamination, confidence=confidence)
    except ValueError as error:  # copies of an image count as one
        raise click.ClickException(
            f"nothing was written: {error} Copies of an image count once."
        ) from error


def _n_calibrating(detector: TransformalyDetector, n_images: int) -> int:
    """How many of the images of a fit calibrate, if none is the copy of another."""
    held_out = np.arange(math.ceil(detector.validation_fraction * n_images))
    student = detector._make_student(resolve(detector))
    return len(share_out(held_out, None, chooses=student is not None and student._chooses)[1])
