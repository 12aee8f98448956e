"""Working through images of which some cannot be read, and more than fit in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import joblib

from skanomaly_vit._images import open_images
from skanomaly_vit._terminal import progress_bar

Result = TypeVar("Result")

#: Called with the path of what cannot be read, and why.
OnUnreadable = Callable[[str, str], None]


def compute_readable(
    compute: Callable[[list[str]], Result], paths: list[str], on_unreadable: OnUnreadable
) -> tuple[list[str], Result | None]:
    """What `compute` gives for those of some images that can be read, and their paths.

    Files are looked at one by one only once `compute` has failed: most never need it.
    """
    while paths:
        try:
            return paths, compute(paths)
        except ValueError:
            causes = [find_cause(path) for path in paths]
            if not any(causes):
                raise
        for path, cause in zip(paths, causes, strict=True):
            if cause is not None:
                on_unreadable(path, cause)
        paths = [path for path, cause in zip(paths, causes, strict=True) if cause is None]
    return [], None


def select_readable(paths: list[str], n_jobs: int | None, on_unreadable: OnUnreadable) -> list[str]:
    """Decode every image once, and keep the paths of those that can be."""
    parallel = joblib.Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
    causes = parallel(joblib.delayed(find_cause)(path) for path in paths)
    readable = []
    with progress_bar("checking", len(paths)) as bar:
        for path, cause in zip(paths, causes, strict=True):
            bar.update()
            if cause is None:
                readable.append(path)
            else:
                on_unreadable(path, cause)
    return readable


def find_cause(path: str) -> str | None:
    """Why an image cannot be decoded, on one line; None if it can be."""
    try:
        open_images([path])[0]
    except ValueError as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or str(cause).removeprefix("sample 0: ")
        return " ".join(reason.split()) or type(cause).__name__
    return None


def chunked(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` items, in order."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
