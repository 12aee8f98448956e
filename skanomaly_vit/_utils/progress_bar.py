"""A bar for each task of a fit, with tqdm, under any version of scikit-learn."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class ProgressBar:
    """Progress bars of a fit, a callback for ``set_callbacks``.

    One bar counts the epochs of the students and the pass for features, and one below it counts
    the batches of each, on standard error.

    See Also
    --------
    TransformalyDetector : The detector that reports its progress.

    Notes
    -----
    From version 1.9 scikit-learn has callbacks, and an ``sklearn.callback.ProgressBar`` of its own,
    which needs the package rich; it also follows a search from above. This one needs no more than
    the package itself, and works with each version of scikit-learn that the package supports. Set
    it on the estimator that fits.

    Examples
    --------
    >>> from skanomaly_vit import ProgressBar, TransformalyDetector
    >>> detector = TransformalyDetector().set_callbacks(ProgressBar())
    """

    def __init__(self) -> None:
        self._bars: dict[int, Any] = {}

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing; scikit-learn calls it before a fit.

        Parameters
        ----------
        estimator : estimator
            The estimator that fits.
        context : CallbackContext
            The fit.
        """

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Open a bar, if the task has parts.

        Parameters
        ----------
        estimator : estimator
            The estimator that fits.
        context : CallbackContext
            The task.
        """
        if context.max_subtasks:
            self._bars[id(context)] = tqdm(
                total=context.max_subtasks,
                desc=f"{context.estimator_name} {context.task_name}",
                leave=context.parent is None,
                file=sys.stderr,
            )

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Close the bar of the task, and count the task on the bar above it.

        Parameters
        ----------
        estimator : estimator
            The estimator that fits.
        context : CallbackContext
            The task.
        """
        self._close(id(context))
        above = self._bars.get(id(context.parent))
        if above is not None:
            above.update()

    def teardown(self, estimator: Any, context: Any) -> None:
        """Close the bars that a failed fit has left open.

        Parameters
        ----------
        estimator : estimator
            The estimator that fits.
        context : CallbackContext
            The fit.
        """
        for key in list(self._bars):
            self._close(key)

    def _close(self, key: int) -> None:
        bar = self._bars.pop(key, None)
        if bar is not None:
            bar.close()
