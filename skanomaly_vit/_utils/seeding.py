"""Seeding of torch's global generator while another package draws from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# All threads draw from that generator. Reentrant: building a network may run code of the user.
_one_thread_at_a_time = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, and restore its state at the end.

    Only on the CPU: `torch.manual_seed` would seed the generators of GPUs as well.
    """
    with _one_thread_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
