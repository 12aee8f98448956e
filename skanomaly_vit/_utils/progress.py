"""Progress of a fit: scikit-learn callbacks and log lines."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from skanomaly_vit._utils.compat import CallbackContext

#: Up to this number, each batch is a sub-task; beyond it, several batches share one. scikit-learn
#: keeps a context of each sub-task.
_MAX_SUBTASKS = 1000

logger = logging.getLogger("skanomaly_vit")

Item = TypeVar("Item")


class Progress:
    """A task of `estimator` that reports its sub-tasks to the estimator's callbacks.

    Parameters
    ----------
    estimator : estimator or None
        The estimator that fits.
    context : CallbackContext or None
        scikit-learn's context of the task. ``None`` (scoring, transforming) reports nothing.
    at_once : int
        Items that `track` reports as one sub-task.
    """

    def __init__(
        self, estimator: Any = None, context: CallbackContext | None = None, at_once: int = 1
    ) -> None:
        self._estimator = estimator
        self._context = context
        self._at_once = at_once
        self.stop_requested = False

    @contextmanager
    def task(self, name: str, n_subtasks: int = 0) -> Iterator[Progress]:
        """Open a sub-task; a callback that returns true at its end asks this task to stop."""
        if self._context is None:
            yield self
            return
        at_once = max(1, math.ceil(n_subtasks / _MAX_SUBTASKS))
        # One more where two passes of an epoch both end in a part of a sub-task.
        max_subtasks = math.ceil(n_subtasks / at_once) + (at_once > 1)
        context = self._context.subcontext(task_name=name, max_subtasks=max_subtasks)
        context.call_on_fit_task_begin(estimator=self._estimator)
        yield Progress(self._estimator, context, at_once)
        self.stop_requested |= context.call_on_fit_task_end(estimator=self._estimator)

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass `items` on; each one, or several of very many, are a sub-task."""
        iterator = iter(items)
        for first in iterator:
            with self.task("batch"):
                yield first
                yield from itertools.islice(iterator, self._at_once - 1)


def log(verbose: int, message: str, *args: object) -> None:
    """Log `message` at INFO level if `verbose`, so that a user without a logging set-up sees it."""
    if not verbose:
        return
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    logger.info(message, *args)
