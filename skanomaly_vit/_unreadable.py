"""Images that cannot be read: what is said of them, as an error or as a warning."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PACKAGE = os.path.dirname(__file__) + os.sep
_LISTED = 50  # images that a message names; the others are counted


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read.

    Attributes
    ----------
    index : int
        Its place in the `X` that was passed.
    path : str or None
        None if it was not given as a path.
    cause : str
        What is wrong with it, on one line.
    """

    index: int
    path: str | None
    cause: str

    def __str__(self) -> str:
        where = f"sample {self.index}"
        return (
            f"{where}: {self.cause}"
            if self.path is None
            else f"{where} ({self.path!r}): {self.cause}"
        )


class UnreadableImageWarning(UserWarning):
    """Images that could not be read, and have NaN in place of a score (``on_error="nan"``).

    Parameters
    ----------
    message : str
        Lists the images, up to 50 of them.
    images : sequence of UnreadableImage, default=()
        All of them, each with ``index``, ``path`` and ``cause``.

    Examples
    --------
    >>> import warnings
    >>> from skanomaly_vit import UnreadableImageWarning
    >>> def score():
    ...     warnings.warn(UnreadableImageWarning("1 of 9 images cannot be read"), stacklevel=2)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     score()
    >>> caught[0].message.images
    []
    """

    def __init__(self, message: str, images: Sequence[UnreadableImage] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


class UnreadableImageError(ValueError):
    """Raised for images that cannot be read, as opposed to an `X` that is none.

    Parameters
    ----------
    message : str
    images : sequence of UnreadableImage, default=()
    """

    # The default is what lets joblib bring the error out of another process.
    def __init__(self, message: str, images: Sequence[UnreadableImage] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


def merge(errors: Sequence[UnreadableImageError]) -> UnreadableImageError:
    """One error that names all images, with the cause of the first."""
    first = errors[0]
    images = [image for error in errors for image in error.images]
    if len(images) == 1:
        return first
    others = _list(images[1:])
    merged = UnreadableImageError(f"{first}\nCannot be read either:\n{others}", images)
    merged.__cause__ = first.__cause__
    return merged


def warn_unreadable(images: Sequence[UnreadableImage], n_images: int) -> None:
    """Warn, where the package was called, of images that have NaN in place of a score."""
    if images:
        message = (
            f"{len(images)} of {n_images} images cannot be read; they get NaN:\n{_list(images)}"
        )
        warnings.warn(UnreadableImageWarning(message, images), stacklevel=_depth_of_caller())


def one_line(error: BaseException) -> str:
    """What an error says, without its type if that adds nothing."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split()) or type(error).__name__


def _list(images: Sequence[UnreadableImage]) -> str:
    lines: Iterable[str] = (f"- {image}" for image in images[:_LISTED])
    more = len(images) - _LISTED
    return "\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])])


def _depth_of_caller() -> int:
    """`stacklevel`, for `warn_unreadable`, of the first frame outside of the package."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    return depth
