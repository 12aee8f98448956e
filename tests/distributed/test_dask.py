"""Dask: a real cluster of processes shares the work, and some get killed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from engines import call_at
from images import blobs
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skanomaly_vit import DiskCache
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit.distillation import _sharing
from skanomaly_vit.distributed._joblib import active_engine
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer

distributed = pytest.importorskip("distributed")

# Dask tells of its own future, and of clocks and sockets of a busy machine: none of ours.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{module}")
    for category in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning")
    for module in ("dask", "distributed", "tornado", "asyncio")
]

N_IMAGES = 120


@pytest.fixture(scope="module")
def client():
    """A client of two workers with a thread each, in processes of their own."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(_passes, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(_passes, "SHARDS_PER_SUM", 1)


@pytest.fixture
def paths(rng, tmp_path) -> list[str]:
    names = [str(tmp_path / f"{i}.png") for i in range(N_IMAGES)]
    for name, image in zip(names, blobs(rng, N_IMAGES), strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.fixture
def make(make_detector):
    def make(**parameters):
        return make_detector(**{"batch_size": 4, "contamination": 0.2} | parameters)

    return make


@pytest.fixture
def kill(client):
    """Kill a worker by the signal that nobody can catch, and see that another takes its place."""
    killed = []

    def kill():
        killed.append(min(client.run(os.getpid).values()))
        os.kill(killed[-1], signal.SIGKILL)

    yield kill
    assert len(killed) == 1
    client.wait_for_workers(2, timeout=300)
    assert not set(killed) & set(client.run(os.getpid).values())


def assert_same_detector(detector, other):
    assert detector.offset_ == other.offset_
    for a, b in zip(detector.distillation_.students_, other.distillation_.students_, strict=True):
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y)
    np.testing.assert_array_equal(detector.calibration_scores_, other.calibration_scores_)


def test_a_task_of_a_worker_is_not_split_further(client):
    with joblib.parallel_config(backend="dask"):
        assert active_engine().n_workers == 2
        inside = joblib.Parallel()(joblib.delayed(active_engine)() for _ in range(2))
    assert inside == [None, None]


def test_arrays_travel_in_slices(client, make, rng):
    X = blobs(rng, 24)
    detector = make().fit(X)
    alone = detector.score_samples(X)
    with joblib.parallel_config(backend="dask"):
        np.testing.assert_array_equal(detector.score_samples(X), alone)


def test_a_search_shares_one_cache_among_the_workers(client, tiny, make, paths, rng, tmp_path):
    odd = [str(tmp_path / f"odd{i}.png") for i in range(6)]
    for name in odd:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(name)
    X, y = paths[:20] + odd, np.array([1] * 20 + [-1] * 6)
    options = {
        "param_grid": {"n_blocks": [1, 2]}, "scoring": anomaly_scorer(), "refit": False,
        "cv": NormalOnlyKFold(2, random_state=0), "error_score": "raise",
    }  # fmt: skip
    alone = GridSearchCV(make(), **options).fit(X, y)
    folder = tmp_path / "cache"
    with joblib.parallel_config(backend="dask"):
        together = GridSearchCV(make(memory=str(folder)), **options).fit(X, y)
    scores = [search.cv_results_["mean_test_score"] for search in (alone, together)]
    np.testing.assert_array_equal(*scores)
    with DiskCache(folder) as cache:
        size = cache.size
        assert size > 0
        with joblib.parallel_config(backend="dask"):  # whatever worker does what this time
            again = GridSearchCV(make(memory=str(folder)), **options).fit(X, y)
        assert cache.size == size
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], scores[0])


def test_a_worker_killed_in_the_middle_changes_no_bit(client, make, paths, kill, monkeypatch):
    named = {"backbone": "test_vit", "pretrained": False, "image_size": 32}
    alone = make(**named).fit(paths)
    call_at(monkeypatch, ImageSource, "merge_findings", 3, kill)  # one a shard
    with joblib.parallel_config(backend="dask"):
        together = make(**named).fit(paths)
        scores, maps = together.score_samples(paths, return_map=True)
    assert_same_detector(together, alone)
    np.testing.assert_array_equal(scores, alone.score_samples(paths))
    np.testing.assert_array_equal(maps, alone.anomaly_map(paths))


def test_a_worker_killed_while_it_trains_a_block_changes_no_bit(client, make, paths, kill):
    options = {"student": "block", "max_epochs": 5}
    alone = make(**options).fit(paths)

    def announce_training():
        train = _sharing.train_part

        def train_part(*args, **options):
            distributed.Event(f"{os.getpid()} trains").set()
            return train(*args, **options)

        _sharing.train_part = train_part

    client.run(announce_training)
    trains = [distributed.Event(f"{pid} trains") for pid in client.run(os.getpid).values()]

    def kill_when_both_train():
        for event in trains:
            assert event.wait(300)
        kill()

    with ThreadPoolExecutor(1) as watcher, joblib.parallel_config(backend="dask"):
        watching = watcher.submit(kill_when_both_train)
        together = make(**options).fit(paths)
        watching.result()
    assert_same_detector(together, alone)
