"""What the command line shows and hears: bars and messages on stderr, Ctrl-C."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm


def progress_bar(description: str, total: int | None = None, *, shown: bool = True) -> Any:
    """A bar on stderr, if it is to be shown and there is a terminal; to be used with `with`."""
    # tqdm takes None for "only on a terminal".
    disable = None if shown else True
    return tqdm(total=total, desc=description, unit=" images", disable=disable, file=sys.stderr)


class Unreadable:
    """Tells, as they are met, what cannot be read, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str, cause: str | OSError) -> None:
        reason = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
        self.count += 1
        tell(f"unreadable: {path!r}: {reason}")


def tell(message: str) -> None:
    """Say something on stderr, above a bar if there is one."""
    tqdm.write(message, file=sys.stderr)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Say what a fit warns of in a line, without the place in our code."""
    from skanomaly_vit.calibration import CalibrationWarning

    def show(message: Warning | str, *ignored: Any, **options: Any) -> None:
        tell(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", CalibrationWarning)
        warnings.showwarning = show
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C back until what is being written is complete; a second one gets through."""
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append((number, frame))

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held and callable(previous):  # it is not where the shell has SIGINT ignored
        previous(*held[0])
