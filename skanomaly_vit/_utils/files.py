"""Atomic writing of files."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def check_target(path: Any, example: str) -> Path:
    """Return the path of a writable file; errors suggest the name `example`."""
    target = Path(os.path.expanduser(os.fsdecode(path)))
    if target.is_dir():
        raise IsADirectoryError(
            f"path={str(target)!r} is a directory; pass a file in it, such as "
            f"{str(target / example)!r}"
        )
    # A link stays a link: its target is written.
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r}: there is no folder {str(target.parent)!r}; create it first"
        )
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"path={str(path)!r}: {str(target.parent)!r} cannot be written to")
    return target


def write_atomically(content: bytes | bytearray, target: Path) -> None:
    """Write a file; at no time does half of it stand under its name.

    Readers of `target` find the old file or the new one, after a crash too.
    """
    with replacing(target) as stream:
        stream.write(content)


@contextmanager
def replacing(target: Path, *, despite: tuple[type[BaseException], ...] = ()) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `target` at the end of a ``with`` block.

    If the block raises, `target` stays as it was, unless the error is one of `despite`.
    """
    # Not tempfile: only the owner can read its files.
    part = target.parent / f".skanomaly-{uuid.uuid4().hex}.part"
    stopped: BaseException | None = None
    try:
        with open(part, "xb") as stream:
            try:
                yield stream
            except despite as error:
                stopped = error
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    if stopped is not None:
        raise stopped
