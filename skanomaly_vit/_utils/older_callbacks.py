"""Callbacks of a fit under scikit-learn before 1.9, which has none of its own.

What is written to the protocol of `sklearn.callback.FitCallback` works here too, if it is set on
the estimator that fits: meta-estimators of these versions pass no callbacks on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Self, TypeVar

Fit = TypeVar("Fit", bound=Callable[..., Any])

_HOOKS = ("setup", "on_fit_task_begin", "on_fit_task_end", "teardown")


class CallbackContext:
    """A task of a fit: its name, its place among the others, and how many parts it has.

    Parameters
    ----------
    callbacks : list of callback instances
    estimator_name : str
    task_name : str
    task_id : int
    max_subtasks : int
    parent : CallbackContext or None
    """

    def __init__(
        self,
        callbacks: list[Any],
        estimator_name: str,
        task_name: str,
        task_id: int = 0,
        max_subtasks: int = 0,
        parent: CallbackContext | None = None,
    ) -> None:
        self._callbacks = callbacks
        self._n_children = 0
        self.estimator_name = estimator_name
        self.task_name = task_name
        self.task_id = task_id
        self.max_subtasks = max_subtasks
        self.parent = parent

    def subcontext(self, task_name: str = "", max_subtasks: int = 0) -> CallbackContext:
        """Make the context of the next part of this task."""
        task_id, self._n_children = self._n_children, self._n_children + 1
        return CallbackContext(
            self._callbacks, self.estimator_name, task_name, task_id, max_subtasks, self
        )

    def call_on_fit_task_begin(self, *, estimator: Any, X: Any = None, y: Any = None) -> Self:
        """Tell the callbacks that the task begins."""
        self._call("on_fit_task_begin", estimator, X=X, y=y)
        return self

    def call_on_fit_task_end(self, *, estimator: Any, X: Any = None, y: Any = None) -> bool:
        """Tell the callbacks that the task has ended; whether one of them asks to stop."""
        return self._call("on_fit_task_end", estimator, X=X, y=y)

    def _call(self, hook: str, estimator: Any, **known: Any) -> bool:
        results = [
            getattr(callback, hook)(estimator, self, **_taken(callback, hook, known))
            for callback in self._callbacks
        ]
        return any(results)


def _taken(callback: Any, hook: str, known: dict[str, Any]) -> dict[str, Any]:
    """Of the data of a task, those that the hook of a callback names."""
    parameters = inspect.signature(getattr(callback, hook)).parameters.values()
    return {p.name: known.get(p.name) for p in parameters if p.kind == p.KEYWORD_ONLY}


class CallbackSupportMixin:
    """Adds `set_callbacks` to an estimator."""

    _skl_callbacks: list[Any]
    _callback_fit_ctx: CallbackContext

    def set_callbacks(self, *callbacks: Any) -> Self:
        """Set callbacks of `fit`.

        Parameters
        ----------
        *callbacks : callback instances
            As `sklearn.callback.FitCallback` of scikit-learn 1.9 describes them.

        Returns
        -------
        self : estimator
            The estimator.

        Raises
        ------
        TypeError
            If a callback lacks a method.
        """
        for callback in callbacks:
            missing = [hook for hook in _HOOKS if not hasattr(callback, hook)]
            if missing or isinstance(callback, type):
                raise TypeError(
                    f"{callback!r} is no callback: it has to be an instance with the methods "
                    f"{', '.join(_HOOKS)}"
                )
        self.__dict__.pop("_skl_callbacks", None)
        if callbacks:
            self._skl_callbacks = list(callbacks)
        return self

    def _init_callback_context(self, max_subtasks: int = 0) -> CallbackContext:
        callbacks = self.__dict__.get("_skl_callbacks", [])
        context = CallbackContext(callbacks, type(self).__name__, "fit", max_subtasks=max_subtasks)
        self._callback_fit_ctx = context
        for callback in callbacks:
            callback.setup(estimator=self, context=context)
        return context


def with_callbacks(fit: Fit) -> Fit:
    """Have a `fit` end with `teardown` of the callbacks, whether it succeeds or not."""

    @functools.wraps(fit)
    def managed(estimator: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return fit(estimator, *args, **kwargs)
        finally:
            context = estimator.__dict__.pop("_callback_fit_ctx", None)
            if context is not None:
                for callback in estimator.__dict__.get("_skl_callbacks", []):
                    callback.teardown(estimator=estimator, context=context)

    return managed  # type: ignore[return-value]
