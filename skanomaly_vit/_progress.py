"""What a user sees while fitting: scikit-learn callbacks and log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sklearn.callback import CallbackContext

logger = logging.getLogger("skanomaly_vit")

Item = TypeVar("Item")


class Progress:
    """A task of `estimator` that reports its sub-tasks to the estimator's callbacks.

    Parameters
    ----------
    estimator : estimator or None
        Whose fit this is.
    context : CallbackContext or None
        scikit-learn's context of the task. ``None`` (scoring, transforming) reports nothing.
    """

    def __init__(self, estimator: Any = None, context: CallbackContext | None = None) -> None:
        self._estimator = estimator
        self._context = context
        self.stop_requested = False

    @contextmanager
    def task(self, name: str, n_subtasks: int = 0) -> Iterator[Progress]:
        """Open a sub-task; a callback that returns true at its end asks this task to stop."""
        if self._context is None:
            yield self
            return
        context = self._context.subcontext(task_name=name, max_subtasks=n_subtasks)
        context.call_on_fit_task_begin(estimator=self._estimator)
        yield Progress(self._estimator, context)
        self.stop_requested |= context.call_on_fit_task_end(estimator=self._estimator)

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass `items` on, each one a sub-task."""
        for item in items:
            with self.task("batch"):
                yield item


def log(verbose: int, message: str, *args: object) -> None:
    """Log `message` at INFO level if `verbose`, so that a user without a logging set-up sees it."""
    if not verbose:
        return
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    logger.info(message, *args)
