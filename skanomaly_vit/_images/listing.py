"""Image files: found below folders, or named by paths from a pipe."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO

#: Usual suffixes of images, which messages show; `has_image_suffix` knows all.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# Formats that Pillow lists and that hold no image it could decode everywhere: programs, films, and
# those of which it knows the name only.
_NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))

# Images that a folder is asked for to know what suffixes it holds.
_LOOKED_AT = 1000

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
    """Whether the installed Pillow opens files of such a name."""
    from PIL import Image, features

    suffix = os.path.splitext(name)[1].lower()
    kind = Image.registered_extensions().get(suffix)
    if kind == "JPEG2000":
        return bool(features.check_codec("jpg_2000"))
    # Pillow opens MPO as JPEG.
    return kind == "MPO" or (kind in Image.OPEN and kind not in _NOT_DECODED)


def advise_listing(folder: str) -> str:
    """Code that lists the images of a folder, by the suffixes that are there."""
    images = islice(walk_images(folder, lambda *_: None), _LOOKED_AT)
    found = {os.path.splitext(path)[1] for path in images}
    if len(found) == 1:
        return f'sorted(Path({folder!r}).rglob("*{found.pop()}"))'
    if found:
        return f"skanomaly_vit.datasets.list_images({folder!r})"
    return f"the files of another folder: {folder!r} and those below it hold no images"


class LeftOut:
    """Counts the files that a walk leaves out, by their suffix."""

    def __init__(self) -> None:
        self._suffixes: Counter[str] = Counter()

    def __call__(self, path: str) -> None:
        self._suffixes[os.path.splitext(path)[1].lower()] += 1

    def __str__(self) -> str:
        """Such as "3 files, which Pillow does not open as images: 2 .txt, 1 without a suffix"."""
        kinds = ", ".join(
            f"{count} {suffix or 'without a suffix'}"
            for suffix, count in self._suffixes.most_common()
        )
        total = self._suffixes.total()
        which = "1 file, which is" if total == 1 else f"{total} files, which are"
        return f"{which} no image by the suffix: {kinds}"

    def __bool__(self) -> bool:
        return bool(self._suffixes)


def walk_images(
    folder: str,
    on_error: Callable[[str, OSError], None],
    on_left_out: Callable[[str], None] = lambda path: None,
) -> Iterator[str]:
    """Paths of all images below a folder; holds one folder at a time.

    Parameters
    ----------
    folder : str
        The walk follows links to folders, but enters no folder twice, so that loops end.
    on_error : callable
        Called with the path of a folder that cannot be listed, and the error.
    on_left_out : callable
        Called with the path of each file that is no image by its suffix. Hidden files are not told.

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
        else:
            on_left_out(entry.path)


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
