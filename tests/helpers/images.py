"""Images for tests, and threads that begin at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np


def blobs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bright discs on a grey ground, a little different each, shape (n, 32, 32, 3)."""
    y, x = np.mgrid[:32, :32]
    centre = rng.normal(16, 1.0, (n, 2, 1, 1))
    radius = np.hypot(y - centre[:, 0], x - centre[:, 1])
    disc = 60 + 150 / (1 + np.exp(radius - 8)) + rng.normal(0, 3, (n, 32, 32))
    return np.repeat(disc[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)


def meeting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, begun by two threads at once, or a little later if the other is held up."""
    barrier = threading.Barrier(2)

    def meet(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.2)
        return function(*args, **options)

    return meet
