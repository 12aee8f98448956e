"""Tasks that can be done anywhere: what one worker does at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Result = TypeVar("Result")

#: What all tasks of a run need: it travels to a process once, and not with each task.
SharedObjects: TypeAlias = tuple[Any, ...]


class Task(Protocol):
    """What one worker does at a time."""

    def signature(self) -> bytes:
        """What tells it from other tasks."""


Function: TypeAlias = Callable[[SharedObjects, Any], Result]


class Engine(Protocol):
    """Runs tasks side by side."""

    @property
    def n_workers(self) -> int:
        """How many run at once."""

    def run(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """What `function` makes of each task, in the order of the tasks.

        An error of a task is raised in its turn: the first in order, not in time. A part of the
        shared object that has a method `pack` travels as what that gives, which has `unpack`.
        """


@dataclass(frozen=True)
class Success(Generic[Result]):
    """What a task gave."""

    value: Result

    def result(self) -> Result:
        """Give it."""
        return self.value


@dataclass(frozen=True)
class Failure:
    """What a task raised."""

    error: Exception

    def result(self) -> Any:
        """Raise it."""
        raise self.error


def run_task(
    function: Function[Result], shared: SharedObjects, task: Task
) -> Success[Result] | Failure:
    """Do a task, and give what became of it."""
    try:
        return Success(function(shared, task))
    except Exception as error:  # noqa: BLE001 - raised again where the result is awaited
        return Failure(error)
