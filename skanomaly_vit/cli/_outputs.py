"""Outputs of a command that two processes may write at once: locked, or replaced as a whole."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from skanomaly_vit._utils.files import replacing
from skanomaly_vit.cli._tables import WHOLE
from skanomaly_vit.cli._terminal import tell


def open_output(output: str | None, kind: str, stack: ExitStack) -> BinaryIO:
    """Open the stream of a table: a file, closed with the stack, or standard output.

    A text grows under its name, and no second command may write it meanwhile. A Parquet file, or
    one of Excel, takes its name when it is complete, after Ctrl-C too; nobody can read it before.
    """
    if output is None:
        return sys.stdout.buffer
    target = os.path.realpath(output)  # a link stays a link
    if kind in WHOLE and (os.path.isfile(target) or not os.path.exists(target)):
        return stack.enter_context(replacing(Path(target), despite=(KeyboardInterrupt,)))
    return stack.enter_context(_open_alone(target))


def open_to_append(output: str, stack: ExitStack) -> BinaryIO:
    """Open a file, new or not, to read it and write at its end; no second command may write it."""
    path = os.path.realpath(output)
    stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    stack.enter_context(stream)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        raise click.UsageError(f"{output!r} is no file; rows are read again after a restart.")
    _lock(path, stream)
    return stream


def _open_alone(path: str) -> BinaryIO:
    """Open a file to write, empty; raise if another command is writing it."""
    # Not "wb", which would empty the file of the other command.
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # a pipe, /dev/null
        return stream
    try:
        _lock(path, stream)
        stream.truncate(0)
    except BaseException:
        stream.close()
        raise
    return stream


def _lock(path: str, stream: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise click.UsageError(
                f"another command is writing {path!r}; wait for it, or pass another name."
            ) from error
        tell(f"{path!r} cannot be locked ({error.strerror}); let no second command write it.")
