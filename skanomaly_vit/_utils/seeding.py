"""Draws that other packages make from torch's global generator, and that are not to show."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# All threads draw from that generator. Reentrant, since building a network may run a user's code.
_one_thread_at_a_time = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have draws from torch's global generator follow `seed`; the caller's stream stays put.

    Only the CPU's: `torch.manual_seed` would seed the generators of GPUs as well.
    """
    with _one_thread_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
