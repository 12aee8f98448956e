"""Input images of a command: files, folders, and paths on standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import click

from skanomaly_vit._images.listing import SUFFIXES, LeftOut, read_paths, walk_images
from skanomaly_vit.cli._terminal import Unreadable, tell

STDIN = "-"


def list_inputs(images: Sequence[str], unreadable: Unreadable, null: bool = False) -> Iterator[str]:
    """Iterate over the paths of all images; reject a folder without images at once."""
    for path in images:
        if _is_folder(path):
            _require_images(path)
    if null and STDIN not in images:
        raise click.UsageError("--null applies to paths on standard input: add - to read them.")
    return _generate(images, unreadable, b"\0" if null else b"\n")


def count_inputs(images: Sequence[str]) -> int | None:
    """Number of images for a bar on a terminal; None if unknown or without a terminal."""
    if STDIN in images or not sys.stderr.isatty():
        return None
    return sum(
        sum(1 for _ in walk_images(path, lambda *_: None)) if _is_folder(path) else 1
        for path in images
    )


def _generate(images: Sequence[str], unreadable: Unreadable, separator: bytes) -> Iterator[str]:
    for path in images:
        if path == STDIN:
            yield from _from_stdin(separator)
        elif _is_folder(path):
            left_out = LeftOut()
            yield from walk_images(path, unreadable, left_out)
            if left_out:
                tell(f"{path}: left out {left_out}.")
        else:
            yield path


def _from_stdin(separator: bytes) -> Iterator[str]:
    stream = sys.stdin.buffer
    if stream.isatty():
        tell("Reading paths from the terminal, one a line; Ctrl-D ends.")
    try:
        yield from read_paths(stream, separator)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _is_folder(path: str) -> bool:
    return path != STDIN and os.path.isdir(path)


def _require_images(folder: str) -> None:
    def refuse(path: str, error: OSError) -> None:
        if path == folder:
            raise click.UsageError(f"the folder {folder!r} cannot be listed: {error.strerror}.")

    left_out = LeftOut()
    if next(walk_images(folder, refuse, left_out), None) is None:
        found = f" Left out: {left_out}." if left_out else ""
        raise click.UsageError(
            f"the folder {folder!r} and its subfolders hold no images, that is, files that end in "
            f"{', '.join(sorted(SUFFIXES))}, or in another suffix that Pillow opens.{found}"
        )
