"""A worker that dies takes its tasks with it; they are done again, and no bit changes."""

from __future__ import annotations

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import joblib
import pytest

from skanomaly_vit.distributed._joblib import JoblibEngine
from skanomaly_vit.distributed._lost_tasks import Outstanding, is_loss
from skanomaly_vit.exceptions import WorkerWarning

N_TASKS = 12


def square_unless_killed(shared, task):
    """The square of a number; the first worker that meets a marked one dies, as by `kill -9`."""
    number, mark = task
    if mark is not None and (mark == "always" or claim(mark)):
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def claim(mark: str) -> bool:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def squares(mark: str | None):
    tasks = [(number, mark if number == 5 else None) for number in range(N_TASKS)]
    with joblib.parallel_config(backend="loky", n_jobs=2):
        return list(JoblibEngine(2).run(square_unless_killed, (), tasks))


def test_the_tasks_of_a_killed_worker_are_done_again(tmp_path):
    with pytest.warns(WorkerWarning, match="a worker was lost.*Results do not change") as caught:
        found = squares(str(tmp_path / "killed"))
    assert found == [number**2 for number in range(N_TASKS)]
    assert len(caught) == 1
    assert (tmp_path / "killed").exists()


def test_a_task_that_kills_each_worker_ends_the_call():
    with (
        pytest.warns(WorkerWarning, match=r"retry \d of at most 2") as caught,
        pytest.raises(BrokenProcessPool),
    ):
        squares("always")
    assert len(caught) == 2


def test_what_is_handed_out_again_keeps_its_order():
    outstanding = Outstanding(range(10, 20))
    handing = outstanding.hand_out()
    assert [next(handing) for _ in range(4)] == [10, 11, 12, 13]
    outstanding.settle()
    with pytest.warns(WorkerWarning, match=r"3 shard\(s\)"):
        outstanding.lose(RuntimeError("gone"))
    assert list(handing) == []  # a thread that still asks gets nothing
    assert list(outstanding.hand_out()) == list(range(11, 20))


def of_module(module: str, name: str, base: type = Exception) -> type:
    return type(name, (base,), {"__module__": module})


ACTOR_ERROR = of_module("ray.exceptions", "RayActorError")


@pytest.mark.parametrize(
    "kind",
    [
        BrokenProcessPool,
        ACTOR_ERROR,
        of_module("ray.exceptions", "ActorDiedError", ACTOR_ERROR),
        of_module("py4j.protocol", "Py4JJavaError"),
        of_module("pyspark.errors.exceptions.base", "PySparkException"),
    ],
)
def test_errors_of_lost_workers_are_known(kind):
    assert is_loss(kind("gone"))


@pytest.mark.parametrize("kind", [ValueError, of_module("ray.exceptions", "RayTaskError")])
def test_other_errors_are_no_loss(kind):
    assert not is_loss(kind("wrong"))
