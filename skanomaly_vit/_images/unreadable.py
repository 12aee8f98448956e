"""Unreadable images: the error and the warning that list them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from types import FrameType

from skanomaly_vit.exceptions import UnreadableImage, UnreadableImageError, UnreadableImageWarning

# Packages whose decorators and generators stand between our lines and the caller's.
_BETWEEN = (__name__.partition(".")[0], "sklearn", "torch", "joblib", "contextlib")

_LISTED = 50  # images that a message names; it counts the others


def merge(errors: Sequence[UnreadableImageError]) -> UnreadableImageError:
    """Return one error that names all images and has the cause of the first."""
    first = errors[0]
    images = [image for error in errors for image in error.images]
    if len(images) == 1:
        return first
    others = _list(images[1:])
    merged = UnreadableImageError(f"{first}\nCannot be read either:\n{others}", images)
    merged.__cause__ = first.__cause__
    return merged


def warn_unreadable(images: Sequence[UnreadableImage], n_images: int) -> None:
    """Warn, at the line that called the package, of images that score NaN."""
    if images:
        message = (
            f"{len(images)} of {n_images} images cannot be read; they get NaN:\n{_list(images)}"
        )
        warnings.warn(UnreadableImageWarning(message, images), stacklevel=depth_of_caller())


def one_line(error: BaseException) -> str:
    """Message of an error on one line, without its type if that adds nothing."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split()) or type(error).__name__


def _list(images: Sequence[UnreadableImage]) -> str:
    lines: Iterable[str] = (f"- {image}" for image in images[:_LISTED])
    more = len(images) - _LISTED
    return "\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])])


def depth_of_caller() -> int:
    """`stacklevel`, for the function that calls this one, of the line that called the package."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _top_module(frame) in _BETWEEN:
        depth, frame = depth + 1, frame.f_back
    return depth


def _top_module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
