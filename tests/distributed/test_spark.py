"""Spark: its Python workers share the work through joblib, score its tables, and get killed."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from engines import NOT_OURS, code_with, kill, processes_below

from skanomaly_vit.exceptions import WorkerWarning

sql = pytest.importorskip("pyspark.sql", reason="Spark is not installed; see `make engines`")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs a Java runtime", allow_module_level=True)
pytestmark = [*NOT_OURS, pytest.mark.filterwarnings("ignore:Spark:UserWarning")]


@pytest.fixture(scope="module", params=["local[2]", "local[2,4]"])
def spark(request):
    """Sessions in which a task may fail once, and four times."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        sql.SparkSession.builder.master(request.param)
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def workers():
    """Forks of the process from which Spark makes its Python workers."""
    found = processes_below("pyspark.daemon")
    return [pid for pid, parent in found.items() if parent in found]


def test_work_is_shared_to_the_bit(spark, detector, paths):
    joblibspark = pytest.importorskip("joblibspark")
    joblibspark.register_spark()
    alone = detector.score_samples(paths)
    with joblib.parallel_config(backend="spark", n_jobs=2):
        np.testing.assert_array_equal(detector.score_samples(paths), alone)


def test_the_code_of_the_page_scores_a_table(spark, detector, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector.save("parts.skanomaly")
    frame = spark.createDataFrame([(path,) for path in paths], "image string")
    names = {"__name__": "__main__", "frame": frame, "spark": spark}
    exec(code_with("mapInPandas"), names)
    of_arrow = frame.mapInArrow(names["score_tables"], names["schema"])
    expected = detector.score_samples(paths)
    for scored in (names["scored"], of_arrow):
        rows = {row["image"]: row["score"] for row in scored.collect()}
        np.testing.assert_array_equal([rows[path] for path in paths], expected)


def test_a_table_is_refused_with_the_way_to_score_it(spark, detector):
    frame = spark.createDataFrame([("a.png",)], "image string")
    with pytest.raises(TypeError, match=r"pyspark\.sql\.\S+, .*call `mapInArrow` or `mapInPandas`"):
        detector.score_dataframe(frame, "image")


def kill_the_next_worker():
    """Kill a worker as soon as there is one: it has yet to import torch, and its task is lost."""
    while not (found := workers()):
        time.sleep(0.01)
    kill(found[0])


def test_a_killed_worker_changes_no_bit(spark, detector, paths):
    """Spark does its task again if it may fail more than once, and we do otherwise."""
    joblibspark = pytest.importorskip("joblibspark")
    joblibspark.register_spark()
    alone = detector.score_samples(paths)
    idle = workers()
    if idle:
        kill(*idle)
    while set(idle) & set(workers()):
        time.sleep(0.01)
    with (
        ThreadPoolExecutor(1) as watcher,
        joblib.parallel_config(backend="spark", n_jobs=2),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        watching = watcher.submit(kill_the_next_worker)
        scores = detector.score_samples(paths)
        watching.result()
    np.testing.assert_array_equal(scores, alone)
    ours = [each for each in caught if issubclass(each.category, WorkerWarning)]
    assert len(ours) == (spark.sparkContext.master == "local[2]")
