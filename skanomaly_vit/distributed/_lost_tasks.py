"""Tasks that have been handed out and may be lost with their worker, to be handed out again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.distributed._tasks import Task
from skanomaly_vit.exceptions import WorkerWarning

#: Losses in a row, without a result between them, after which a call ends.
MAX_LOSSES = 3

#: How Ray and Spark name, in their own modules, that a worker is gone.
_ERRORS = {
    "ray.exceptions": ("RayActorError", "WorkerCrashedError", "ObjectLostError", "NodeDiedError"),
    "py4j.protocol": ("Py4JJavaError",),
    "pyspark.errors": ("PySparkException",),
}


def is_loss(error: BaseException) -> bool:
    """Whether an error of a backend says that a worker is gone.

    No error of a task is one: a worker returns those, and its backend does not see them.
    """
    if isinstance(error, BrokenProcessPool):
        return True
    # joblib-spark gives joblib the error of Spark in place of results, which it iterates over.
    if isinstance(error, TypeError) and "_ExceptionWithTraceback" in str(error):
        return True
    return any(
        kind.__name__ in names and kind.__module__.startswith(module)
        for kind in type(error).__mro__
        for module, names in _ERRORS.items()
    )


class Outstanding:
    """Hands out tasks in their order, and again those that were lost.

    Parameters
    ----------
    tasks : iterable of Task
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._rest = iter(tasks)
        self._lost: deque[Task] = deque()
        self._out: deque[Task] = deque()
        self._round = self._n_losses = 0
        # A thread of joblib asks for tasks, perhaps even after it has raised an error.
        self._lock = threading.Lock()

    def hand_out(self) -> Iterator[Task]:
        """Tasks, until a loss or their end."""
        own_round = self._round
        while True:
            with self._lock:
                if self._round != own_round:
                    return
                task = self._lost.popleft() if self._lost else next(self._rest, None)
                if task is None:
                    return
                self._out.append(task)
            yield task

    @property
    def first(self) -> Task:
        """The first task whose outcome has not come."""
        return self._out[0]

    def settle(self) -> None:
        """Note that the outcome of the first task has come."""
        self._out.popleft()
        self._n_losses = 0

    def lose(self, error: Exception) -> None:
        """Take back what has no outcome, with a warning; raise the error if that is no use."""
        with self._lock:
            self._round += 1
            n_lost = len(self._out)
            self._lost.extendleft(reversed(self._out))
            self._out.clear()
        self._n_losses += 1
        if self._n_losses == MAX_LOSSES:
            raise error
        warn_user(
            f"a worker was lost ({type(error).__name__}); {n_lost} shard(s) without a result are "
            f"computed again (retry {self._n_losses} of at most {MAX_LOSSES - 1}). Results do not "
            "change. Workers are often ended because the machine has run out of "
            "memory: try fewer of them.",
            WorkerWarning,
        )
