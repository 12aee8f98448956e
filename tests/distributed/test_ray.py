"""Ray: its actors share the work through joblib, and score its tables; some get killed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from engines import NOT_OURS, code_with, kill, processes_below

from skanomaly_vit.exceptions import WorkerWarning

ray = pytest.importorskip("ray", reason="Ray is not installed; `make engines` installs it")
pytestmark = NOT_OURS


@pytest.fixture(scope="module")
def cluster():
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    yield
    ray.shutdown()


def kill_a_working_actor():
    """An actor takes the name of the method that it runs."""
    while not (found := processes_below("ray::PoolActor.run_batch")):
        time.sleep(0.01)
    kill(min(found))


def test_a_killed_actor_changes_no_bit(cluster, detector, paths):
    alone, maps = detector.score_samples(paths, return_map=True)
    with (
        ThreadPoolExecutor(1) as watcher,
        joblib.parallel_config(backend="ray", n_jobs=2),
        pytest.warns(WorkerWarning, match="a worker was lost"),
    ):
        watching = watcher.submit(kill_a_working_actor)
        scores, shared_maps = detector.score_samples(paths, return_map=True)
        watching.result()
    np.testing.assert_array_equal(scores, alone)
    np.testing.assert_array_equal(shared_maps, maps)


def test_the_code_of_the_page_scores_a_table(cluster, detector, paths, tmp_path):
    data = pytest.importorskip("ray.data")
    model = tmp_path / "parts.skanomaly"
    detector.save(model)
    names = {"__name__": "__main__", "dataset": data.from_items([{"image": p} for p in paths])}
    code = code_with("map_batches").replace("/shared/parts.skanomaly", str(model))
    exec(code.replace("concurrency=4", "concurrency=1"), names)
    rows = {row["image"]: row["score"] for row in names["scored"].take_all()}
    np.testing.assert_array_equal([rows[path] for path in paths], detector.score_samples(paths))


def test_a_table_is_refused_with_the_way_to_score_it(cluster, detector):
    data = pytest.importorskip("ray.data")
    with pytest.raises(TypeError, match=r"ray\.data\.\S+, .*call `map_batches`"):
        detector.score_dataframe(data.from_items([{"image": "a.png"}]), "image")
