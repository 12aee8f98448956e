"""Tasks, and engines that run them on workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Result = TypeVar("Result")

#: Objects that all tasks of a run need; they travel to a process once, not with each task.
SharedObjects: TypeAlias = tuple[Any, ...]


class Task(Protocol):
    """A unit of work for one worker."""

    def signature(self) -> bytes:
        """Bytes that distinguish it from other tasks."""


Function: TypeAlias = Callable[[SharedObjects, Any], Result]


class Engine(Protocol):
    """Runs tasks side by side."""

    @property
    def n_workers(self) -> int:
        """Number of tasks that run at once."""

    def run(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield the result of `function` for each task, in the order of the tasks.

        `run` raises the error of a task in its turn: the first in order, not in time. A shared
        object with a method `pack` travels as the result of `pack`, which has `unpack`.
        """


@dataclass(frozen=True)
class Success(Generic[Result]):
    """Result of a task."""

    value: Result

    def result(self) -> Result:
        """Return it."""
        return self.value


@dataclass(frozen=True)
class Failure:
    """Error of a task."""

    error: Exception

    def result(self) -> Any:
        """Raise it."""
        raise self.error


def run_task(
    function: Function[Result], shared: SharedObjects, task: Task
) -> Success[Result] | Failure:
    """Run a task, and return its result or its error."""
    try:
        return Success(function(shared, task))
    except Exception as error:  # noqa: BLE001 - `result` raises it again
        return Failure(error)
