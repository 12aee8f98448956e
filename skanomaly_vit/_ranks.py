"""Processes that run the same program side by side, as torchrun starts them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

from skanomaly_vit._digests import combine
from skanomaly_vit._tasks import Function, Luggage, Result, Task, attempt

Value = TypeVar("Value")

#: What torchrun tells a process in its environment.
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """Does every n-th task in this process, and has the others' results from their processes.

    Parameters
    ----------
    group : ProcessGroup
        Of gloo: results are on the CPU.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.n_workers = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def run(
        self, function: Function[Result], luggage: Luggage, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See `Engine`; to be called, and read to the end, on all ranks alike."""
        iterator = iter(tasks)
        while wave := list(itertools.islice(iterator, self.n_workers)):
            own = wave[self._rank] if self._rank < len(wave) else None
            outcome = None if own is None else attempt(function, luggage, own)
            signature = combine(function.__name__, *(task.signature() for task in wave))
            gathered = self.gather((signature, outcome))
            _require_same([signature for signature, _ in gathered])
            for _, theirs in gathered[: len(wave)]:
                yield theirs.reveal()  # type: ignore[union-attr] # each of these had a task

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        values: list[Any] = [None] * self.n_workers
        dist.all_gather_object(values, value, group=self._group)
        return values


def _require_same(signatures: list[bytes]) -> None:
    others = [rank for rank, each in enumerate(signatures) if each != signatures[0]]
    if others:
        raise ValueError(
            f"Ranks {others} have other work than rank 0. Within `torchrun()` all ranks have to "
            "make the same calls: pass the same images in the same order, and the same parameters."
        )


_ranks: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current_ranks() -> Ranks | None:
    """The ranks that share this process's work; None if it works alone."""
    return _ranks.get()


def agreed(value: Value) -> Value:
    """Rank 0's value of something that is left to chance; the value itself in a lone process."""
    ranks = current_ranks()
    if ranks is None:
        return value
    return ranks.gather(value)[0]
