"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any


def check_target(path: Any, example: str) -> Path:
    """Path of a file that can be written; `example` is what one may be called."""
    target = Path(os.path.expanduser(os.fsdecode(path)))
    if target.is_dir():
        raise IsADirectoryError(
            f"path={str(target)!r} is a directory; pass a file in it, such as "
            f"{str(target / example)!r}"
        )
    # A link stays one: what it points to is written.
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r}: there is no folder {str(target.parent)!r}; create it first"
        )
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"path={str(path)!r}: {str(target.parent)!r} cannot be written to")
    return target


def write_atomically(content: bytes | bytearray, target: Path) -> None:
    """Write a file so that at no time there is half of one under its name.

    Whoever opens `target`, after a crash too, finds the old file or the new one.
    """
    # Not tempfile: its files are for their owner alone.
    part = target.parent / f".skanomaly-{uuid.uuid4().hex}.part"
    try:
        with open(part, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
