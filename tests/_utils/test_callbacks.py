"""Callbacks: with scikit-learn's own, and with ours for versions that have none, alike."""

from __future__ import annotations

import pytest
from sklearn.base import BaseEstimator

from skanomaly_vit._utils import older_callbacks
from skanomaly_vit._utils.progress import Progress

KINDS = {"older": older_callbacks}
try:
    from sklearn import callback

    KINDS["scikit-learn"] = callback
except ImportError:
    pass


class Recorder:
    """Writes down what it is told; asks to stop at the end of a part if it is told to."""

    def __init__(self, *, stop=False, fail=False):
        self.told, self._stop, self._fail = [], stop, fail

    def setup(self, estimator, context):
        self.told.append(("setup", context.task_name, None))

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.told.append(("begin", context.task_name, X))
        if self._fail and context.task_name == "part":
            raise RuntimeError("failed")

    def on_fit_task_end(self, estimator, context):
        self.told.append(("end", context.task_name, context.parent and context.parent.task_name))
        return self._stop and context.task_name == "part"

    def teardown(self, estimator, context):
        self.told.append(("teardown", context.task_name, None))


@pytest.fixture(params=KINDS)
def estimator(request):
    kind = KINDS[request.param]

    class Estimator(kind.CallbackSupportMixin, BaseEstimator):
        @kind.with_callbacks
        def fit(self, X, y=None):
            context = self._init_callback_context(max_subtasks=2)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            self.progress = Progress(self, context)
            for _ in range(2):
                with self.progress.task("part", 1) as part:
                    list(part.track(["item"]))
                if self.progress.stop_requested:
                    break
            context.call_on_fit_task_end(estimator=self, X=X, y=y)
            return self

    return Estimator()


PART = [
    ("begin", "part", None),
    ("begin", "batch", None),
    ("end", "batch", "part"),
    ("end", "part", "fit"),
]


def test_a_callback_is_told_of_each_task_and_gets_the_data_it_names(estimator):
    recorder = Recorder()
    assert estimator.set_callbacks(recorder).fit("images") is estimator
    assert recorder.told == [
        ("setup", "fit", None),
        ("begin", "fit", "images"),
        *PART,
        *PART,
        ("end", "fit", None),
        ("teardown", "fit", None),
    ]


def test_a_callback_can_ask_to_stop(estimator):
    recorder = Recorder(stop=True)
    estimator.set_callbacks(recorder).fit("images")
    assert recorder.told.count(("end", "part", "fit")) == 1


def test_a_failed_fit_is_torn_down(estimator):
    recorder = Recorder(fail=True)
    with pytest.raises(RuntimeError, match="failed"):
        estimator.set_callbacks(recorder).fit("images")
    assert recorder.told[-1] == ("teardown", "fit", None)


def test_no_callbacks_take_the_earlier_ones_away(estimator):
    recorder = Recorder()
    estimator.set_callbacks(recorder).set_callbacks().fit("images")
    assert recorder.told == []
    assert vars(estimator).keys() == {"progress"}


@pytest.mark.parametrize("wrong", [Recorder, "bars"])
def test_what_is_no_callback_is_refused(estimator, wrong):
    with pytest.raises(TypeError, match="callback"):
        estimator.set_callbacks(wrong)
