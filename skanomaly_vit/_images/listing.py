"""Image files: found below folders, or named by paths from a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# Bytes to ask of a pipe at once; it may give fewer.
_PIPE_BYTES = 2**16

# No system has longer paths, in bytes: a longer piece is no path.
_LONGEST_PATH = 2**16


def visible_entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Entries of a folder in the order of their names, without those that systems leave there."""
    with os.scandir(folder) as entries:
        visible = [e for e in entries if not e.name.startswith((".", "__MACOSX"))]
    return sorted(visible, key=lambda entry: entry.name)


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def walk_images(folder: str, on_error: Callable[[str, OSError], None]) -> Iterator[str]:
    """Paths of all images below a folder; holds one folder at a time.

    Parameters
    ----------
    folder : str
        The walk follows links to folders, but enters no folder twice, so that loops end.
    on_error : callable
        Called with the path of a folder that cannot be listed, and the error.

    Yields
    ------
    path : str
        Begins with `folder`. Each folder in the order of its names, subfolders among them. Broken
        links are there too: the error comes when the image is opened.
    """
    entered: set[tuple[int, int]] = set()

    def enter(path: str) -> Iterator[os.DirEntry[str]]:
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                return iter(())
            entered.add((status.st_dev, status.st_ino))
            return iter(visible_entries(path))
        except OSError as error:
            on_error(path, error)
            return iter(())

    # No recursion: folders may be nested deeper than Python's calls.
    open_folders = [enter(folder)]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif _is_folder(entry):
            open_folders.append(enter(entry.path))
        elif has_image_suffix(entry.name):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises for a link to itself; os.path.isdir asks the disk for every file.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def read_paths(stream: BinaryIO, separator: bytes) -> Iterator[str]:
    """Paths from a stream of bytes, each as soon as it is complete; skips empty ones.

    Parameters
    ----------
    stream : binary file
        Bytes that are not UTF-8 become surrogates, as in `sys.argv`.
    separator : bytes
        A newline or a null byte.

    Raises
    ------
    ValueError
        If the stream has another separator.
    """
    rest = b""
    while block := stream.read1(_PIPE_BYTES):  # type: ignore[attr-defined]
        *paths, rest = (rest + block).split(separator)
        if separator != b"\0" and b"\0" in block:
            raise ValueError(
                "null bytes separate the paths on standard input, not newlines; add --null"
            )
        if len(rest) > _LONGEST_PATH:
            raise ValueError(
                f"standard input holds {len(rest)} bytes without a {separator!r} that ends a path; "
                "pass one path a line, or with --null a null byte after each"
            )
        yield from (os.fsdecode(path) for path in paths if path)
    if rest:
        yield os.fsdecode(rest)
