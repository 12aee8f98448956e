"""Runs fits in processes that end by SIGKILL at a given moment; started by test_checkpoints.py.

Importing torch takes seconds, so it is done once: this process forks a child for each fit. It
reads one JSON object a line, and answers each with another: whether the child was killed, and
what came of the fit if it was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import warnings
from typing import Any

import joblib
import numpy as np
import torch
from backbones import family
from students import with_student

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit.distillation import _checkpoints as _checkpoints

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)


class Log:
    """A callback that notes, in a file that outlives the process, what is begun and ended."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **kwargs):
        self.note(f"{context.task_name} begins")

    def on_fit_task_end(self, estimator, context, **kwargs):
        self.note(f"{context.task_name} ends")

    def teardown(self, estimator, context):
        pass

    def note(self, what: str) -> None:
        os.write(self._file, f"{what}\n".encode())


def make(parameters: dict[str, Any]) -> TransformalyDetector:
    parameters = {"backbone": family("class token"), "n_blocks": 2, "random_state": 0} | parameters
    if "joblib" in parameters:
        parameters["memory"] = joblib.Memory(parameters.pop("joblib"), verbose=0)
    return TransformalyDetector(**with_student(**parameters))


def outcome(detector: TransformalyDetector) -> str:
    """Digest of all that a fit gives, to the bit."""
    parts = [detector.score_samples(IMAGES), np.array(detector.offset_)]
    parts += [value.numpy() for s in detector.distillation_.students_
              for value in s.state_dict().values()]  # fmt: skip
    history = [{k: v for k, v in epoch.items() if k != "seconds"}
               for epoch in detector.distillation_.history_]  # fmt: skip
    return hashlib.sha256(b"".join(p.tobytes() for p in parts) + repr(history).encode()).hexdigest()


def fit(job: dict[str, Any]) -> dict[str, Any]:
    """One fit; "kill_at" is the number of calls, of any function, before the process is killed."""
    _checkpoints.INTERVAL = job.get("interval", _checkpoints.INTERVAL)
    _passes.IMAGES_PER_SHARD = job.get("images_per_shard", _passes.IMAGES_PER_SHARD)
    _passes.SHARDS_PER_SUM = job.get("shards_per_sum", _passes.SHARDS_PER_SUM)
    if "largest_file" in job:
        _, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], highest))
    n_calls = 0

    def count(frame, event, argument):
        nonlocal n_calls
        n_calls += 1
        if n_calls == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    detector = make(job["parameters"]).set_callbacks(Log(job["log"]))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*too few", UserWarning)
        sys.setprofile(count)
        detector.fit(IMAGES)
        sys.setprofile(None)
    return {
        "outcome": outcome(detector),
        "calls": n_calls,
        "warnings": [f"{w.category.__name__}: {w.message}" for w in seen],
    }


def serve() -> None:
    torch.set_num_threads(1)
    make({"student": "ridge"}).fit(IMAGES)  # what is imported late is imported here
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(fit(job)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as stream:
            answer = json.loads(stream.read() or "{}")
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"killed": os.WIFSIGNALED(status)} | answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
