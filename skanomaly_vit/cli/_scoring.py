"""Chunks of images, some of them unreadable."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import joblib

from skanomaly_vit._images.opening import open_images
from skanomaly_vit.cli._terminal import progress_bar
from skanomaly_vit.exceptions import UnreadableImageError, UnreadableImageWarning

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


Result = TypeVar("Result")

#: Called with the path of an unreadable image, and the cause.
OnUnreadable = Callable[[str, str], None]


def compute_readable(
    compute: Callable[[list[str]], Sequence[Result]],
    paths: list[str],
    on_unreadable: OnUnreadable,
) -> list[tuple[str, Result]]:
    """Pair each readable image with the result of a detector's `compute`.

    The detector has ``on_error="nan"``; each image of its warning goes to `on_unreadable`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreadableImageWarning)
        results = compute(paths)
    gaps = set()
    for warning in caught:
        if not isinstance(warning.message, UnreadableImageWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
            continue
        for image in warning.message.images:
            gaps.add(image.index)
            on_unreadable(paths[image.index], image.cause)
    pairs = enumerate(zip(paths, results, strict=True))
    return [pair for index, pair in pairs if index not in gaps]


def select_readable(
    paths: list[str], detector: TransformalyDetector, on_unreadable: OnUnreadable
) -> list[str]:
    """Decode every image once; return the paths of those that the detector can read."""
    parallel = joblib.Parallel(detector.n_jobs, prefer="threads", return_as="generator")
    causes = parallel(joblib.delayed(find_cause)(path, detector.max_pixels) for path in paths)
    readable = []
    with progress_bar("checking", len(paths)) as bar:
        for path, cause in zip(paths, causes, strict=True):
            bar.update()
            if cause is None:
                readable.append(path)
            else:
                on_unreadable(path, cause)
    return readable


def find_cause(path: str, max_pixels: int | None) -> str | None:
    """Cause why an image cannot be decoded, on one line; None if it can."""
    try:
        open_images([path], max_pixels=max_pixels)[0]
    except UnreadableImageError as error:
        return error.images[0].cause
    return None


def chunked(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` items, in order."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
