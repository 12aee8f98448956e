"""Unreadable images: the error and the warning that list them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import UnreadableImage, UnreadableImageError, UnreadableImageWarning

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
        warn_user(UnreadableImageWarning(message, images))


def one_line(error: BaseException) -> str:
    """Message of an error on one line, without its type if that adds nothing."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split()) or type(error).__name__


def _list(images: Sequence[UnreadableImage]) -> str:
    lines: Iterable[str] = (f"- {image}" for image in images[:_LISTED])
    more = len(images) - _LISTED
    return "\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])])
