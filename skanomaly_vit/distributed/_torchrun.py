"""Ranks of torchrun: processes that run the same program side by side."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist

from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.provenance import versions
from skanomaly_vit._utils.torch_settings import described, settings_here
from skanomaly_vit.distributed._tasks import Function, Result, SharedObjects, Task, run_task

Value = TypeVar("Value")

#: Kind -> name -> value, of what results depend on.
Facts: TypeAlias = Mapping[str, Mapping[str, str]]

#: Environment variables that torchrun sets.
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """Runs every n-th task in this process, and gathers the other results from the other ranks.

    Parameters
    ----------
    group : ProcessGroup
        A gloo group: results are on the CPU.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.n_workers = dist.get_world_size(group)
        self._rank = dist.get_rank(group)
        self._ended = False

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files of all ranks."""
        return self._rank == 0

    def run(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See `Engine`; all ranks have to call it and exhaust it."""
        self.require_alike({"settings of torch": _settings_by_name()})
        iterator = iter(tasks)
        while wave := list(itertools.islice(iterator, self.n_workers)):
            own = wave[self._rank] if self._rank < len(wave) else None
            outcome = None if own is None else run_task(function, shared, own)
            signature = combine(function.__name__, *(task.signature() for task in wave))
            gathered = self.gather((signature, outcome))
            _require_same([signature for signature, _ in gathered])
            for _, theirs in gathered[: len(wave)]:
                yield theirs.result()  # type: ignore[union-attr] # each of these had a task

    def require_alike(self, facts: Facts) -> None:
        """End on all ranks if facts that results depend on differ from those of rank 0.

        Rank 0 raises, and the others exit: one error stands in the log, not one for each rank.
        """
        differences = _compare(self.gather(facts))
        if not differences:
            return
        self._ended = True
        if not self.is_first:
            raise SystemExit(0)
        raise ValueError(
            f"The ranks would get different results: {'; '.join(differences)}. Start all of them "
            "in the same environment, and set torch alike before `torchrun()`."
        )

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order; an error if one has left the block."""
        values = self._gather(value)
        for rank, theirs in enumerate(values):
            if isinstance(theirs, _Left):
                self._ended = True
                raise RuntimeError(
                    f"Rank {rank} has left the block of `torchrun()` "
                    f"{theirs.why or 'without making this call; all ranks have to make it'}."
                )
        return values

    def follow(self, value: Value) -> Value:
        """Rank 0's value."""
        theirs = self.gather(value)[0]
        # Rank 0 keeps its own: draws from a copy would not advance the original.
        return value if self._rank == 0 else theirs

    def leave(self, error: Exception | None = None) -> bool:
        """Wait for the other ranks at the end of the block; whether rank 0 shows the same error.

        Ranks that still work raise an error that names this one's.
        """
        if self._ended:
            return False
        self._ended = True
        left = _Left(None if error is None else f"with {type(error).__name__}: {error}")
        alike = all(theirs == left for theirs in self._gather(left))
        return alike and error is not None and not self.is_first

    # One kind of collective call for all: ranks that fall out of step meet in it, and are told.
    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.n_workers
        dist.all_gather_object(values, value, group=self._group)
        return values


@dataclass(frozen=True)
class _Left:
    """What a rank says at the end of the block: its error, if it has one."""

    why: str | None


def _settings_by_name() -> dict[str, str]:
    return dict(text.split("=", 1) for text in described(settings_here()))


def _compare(facts: Sequence[Facts]) -> list[str]:
    """In which facts the ranks differ from rank 0, a text for each such rank and kind of fact."""
    differences = []
    for rank, theirs in enumerate(facts):
        for kind, values in facts[0].items():
            others = [
                f"{name} {theirs[kind].get(name)} ({value} on rank 0)"
                for name, value in values.items()
                if theirs[kind].get(name) != value
            ]
            if others:
                differences.append(f"{kind} of rank {rank}: {', '.join(others)}")
    return differences


def _require_same(signatures: list[bytes]) -> None:
    others = [rank for rank, each in enumerate(signatures) if each != signatures[0]]
    if others:
        raise ValueError(
            f"Ranks {others} have other work than rank 0. Within `torchrun()` all ranks have to "
            "make the same calls: pass the same images in the same order, and the same parameters."
        )


_ranks: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current_ranks() -> Ranks | None:
    """Ranks that share the work of this process; None if it works alone."""
    return _ranks.get()


def agreed(value: Value) -> Value:
    """Rank 0's value of a random choice; in a lone process, the value itself."""
    ranks = current_ranks()
    return value if ranks is None else ranks.follow(value)


@contextmanager
def sharing_ranks() -> Iterator[None]:
    """Share the work of this process with the other ranks, within a ``with`` block."""
    with _process_group():
        if dist.get_world_size() == 1:
            yield
            return
        # A separate group: the user's may be of NCCL, which knows nothing of the CPU.
        group: Any = dist.new_group(backend="gloo")
        ranks = Ranks(group)
        token = _ranks.set(ranks)
        try:
            ranks.require_alike({"versions": versions(), "settings of torch": _settings_by_name()})
            yield
            ranks.leave()  # rank 0, the hub of the group, must not leave first
        except Exception as error:
            with suppress(RuntimeError):  # another rank is gone without a word
                if ranks.leave(error):
                    _leave_to_rank_0(error)
            raise
        finally:
            _ranks.reset(token)
            dist.destroy_process_group(group)


def _leave_to_rank_0(error: Exception) -> None:
    """If nobody catches an error, end in silence: the log shows it once, not once a rank."""
    show = sys.excepthook

    def show_others(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        if value is error:
            sys.exit(0)  # torchrun would end rank 0, perhaps before its error is written
        show(kind, value, trace)

    sys.excepthook = show_others


@contextmanager
def _process_group() -> Iterator[None]:
    """Use the process group of the user, or make one from torchrun's environment."""
    if dist.is_available() and dist.is_initialized():
        yield
        return
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"There are no ranks to share work with: {', '.join(missing)} are not in the "
            "environment. Start the script with torchrun --nproc-per-node=2 SCRIPT, or call "
            "torch.distributed.init_process_group first."
        )
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def torchrun() -> Iterator[None]:
    """Share the work of estimators among the processes that torchrun has started.

    Within the ``with`` block all ranks make the same calls with the same images. Each rank passes
    its share of the images through the backbone, trains the block students of its share of the
    blocks, and gets the rest from the others. All ranks end with the results of one process, to
    the bit.

    Yields
    ------
    None
        Nothing; the estimators return the results.

    Raises
    ------
    RuntimeError
        If there are no ranks: torchrun did not start the script, and nobody has called
        ``torch.distributed.init_process_group``; or if another rank has left the block, with an
        error or without making the same calls.
    ValueError
        If ranks differ in settings of torch or versions of packages that change results, or in
        images or parameters. For settings and versions rank 0 raises it, and says which rank
        differs in what; the other ranks exit (SystemExit, code 0), so that one error is shown.

    See Also
    --------
    joblib.parallel_config : Shares the work among the workers of Dask, Ray, Spark or this machine.

    Notes
    -----
    Sharing is explicit, since a call by only one of the ranks would wait for the others forever.
    The block initialises ``torch.distributed`` (with gloo) if needed, and restores its state at
    the end. With ``device=None`` a rank runs on its own GPU. If `random_state` is no int, rank 0
    draws for all. An error that all ranks meet, such as an unreadable image, is raised on each; if
    nobody catches it, rank 0 shows it, and the others exit with code 0.

    Examples
    --------
    A script ``fit.py`` for two GPUs, to be started with ``torchrun --nproc-per-node=2 fit.py``:

    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.distributed._torchrun import torchrun
    >>> def main(paths):
    ...     with torchrun():
    ...         return TransformalyDetector(student="block", random_state=0).fit(paths)
    """
    with sharing_ranks():
        yield
