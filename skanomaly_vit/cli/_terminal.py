"""Terminal of the command line: bars and messages on stderr, signals to stop."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Any

from tqdm import tqdm


def progress_bar(
    description: str, total: int | None = None, *, shown: bool = True, unit: str = "images"
) -> Any:
    """Bar on stderr for a `with` statement, visible on a terminal if `shown`."""
    # tqdm takes None for "only on a terminal".
    disable = None if shown else True
    return tqdm(total=total, desc=description, unit=f" {unit}", disable=disable, file=sys.stderr)


@contextmanager
def told_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of the steps that a function reports to ``callback(done, total)``."""
    with progress_bar(description, unit="steps") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


class Unreadable:
    """Reports unreadable images as they come, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str, cause: str | OSError) -> None:
        reason = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
        self.count += 1
        tell(f"unreadable: {path!r}: {reason}")


def tell(message: str) -> None:
    """Write a message to stderr, above a bar if there is one."""
    tqdm.write(message, file=sys.stderr)


def tell_loading(what: str) -> None:
    """Say, on a terminal, what takes the next seconds: call it before slow imports."""
    if sys.stderr.isatty():
        tell(f"Loading {what} ...")


@contextmanager
def told_warnings() -> Iterator[None]:
    """Show each warning of a fit on one line, without the place in our code."""
    from skanomaly_vit.exceptions import (
        AmbiguousImageWarning,
        CalibrationWarning,
        CheckpointWarning,
        OutOfMemoryWarning,
        PrecisionWarning,
    )

    def show(message: Warning | str, *ignored: Any, **options: Any) -> None:
        tell(f"warning: {message}")

    with warnings.catch_warnings():
        for category in (
            AmbiguousImageWarning,
            CalibrationWarning,
            CheckpointWarning,
            OutOfMemoryWarning,
            PrecisionWarning,
        ):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


class Terminated(KeyboardInterrupt):
    """A process was asked to end by SIGTERM: by `timeout`, a service manager, a container."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM stop work as Ctrl-C does, unless it is ignored or has a handler of its own."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stopping_at_signals() -> Iterator[Event]:
    """An event that SIGTERM and Ctrl-C set; the second one stops work where it is."""
    stop = Event()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request) for number in signals}
    try:
        yield stop
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back signals to stop until the current write is complete; a second one gets through."""
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append((number, frame))

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, hold) for number in signals}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
    for caught, frame in held:
        if callable(handler := previous[signal.Signals(caught)]):  # not where it is ignored
            handler(caught, frame)
