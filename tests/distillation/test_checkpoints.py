"""`checkpoint_dir`: a fit that was stopped goes on, and ends with the same to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from students import with_student

from skanomaly_vit import BlockDistillation
from skanomaly_vit.distillation._checkpoints import kept_checkpoints, sealed_steps
from skanomaly_vit.exceptions import CheckpointWarning

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

BLOCK = {"student": "block", "max_epochs": 4, "batch_size": 8}
RIDGE = {"student": "ridge", "batch_size": 2}


# Fits that are killed


@pytest.fixture(scope="module")
def fit() -> Iterator[Callable[..., dict[str, Any]]]:
    """Fits in a process of its own; see stopped_fits.py."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).parents[1] / "helpers/stopped_fits.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def fit(parameters: dict[str, Any], log: Any = os.devnull, **job: Any) -> dict[str, Any]:
            job |= {"parameters": parameters, "log": log}
            server.stdin.write(json.dumps(job, default=str) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline()) | {"pid": server.pid}

        yield fit
        server.kill()


def moments(n_calls: int, n: int) -> list[int]:
    """So many moments of a fit, at random."""
    return np.random.default_rng(0).integers(1, n_calls, n).tolist()


def count(log: Path, line: str) -> int:
    return log.read_text().splitlines().count(line)


@needs_fork
def test_a_fit_of_block_students_killed_at_any_moment_goes_on(fit, tmp_path):
    expected = fit(BLOCK)["outcome"]
    whole = fit(BLOCK | {"checkpoint_dir": tmp_path / "whole"})
    assert whole["outcome"] == expected
    epochs_done = set()
    for moment in moments(whole["calls"], 20):
        folder, log = tmp_path / f"{moment}", tmp_path / f"{moment}.log"
        parameters = BLOCK | {"checkpoint_dir": folder}
        assert fit(parameters, log, kill_at=moment)["killed"]
        epochs_done.add(count(log, "epoch ends"))
        again = fit(parameters, log)
        assert (again["outcome"], again["warnings"]) == (expected, [])
        assert count(log, "epoch begins") <= 4 + 1
        assert list(folder.iterdir()) == []
    assert len(epochs_done) >= 4, "all moments are alike: the test tests little"


@needs_fork
def test_a_pass_for_ridge_students_killed_at_any_moment_goes_on(fit, tmp_path):
    often = {"interval": 0, "images_per_shard": 2, "shards_per_sum": 2}
    expected = fit(RIDGE, **often)["outcome"]
    whole = fit(RIDGE | {"checkpoint_dir": tmp_path / "whole"}, **often)
    assert whole["outcome"] == expected
    in_pass = 0
    for moment in moments(whole["calls"], 20):
        folder, log = tmp_path / f"{moment}", tmp_path / f"{moment}.log"
        parameters = RIDGE | {"checkpoint_dir": folder}
        assert fit(parameters, log, kill_at=moment, **often)["killed"]
        killed_in_pass = count(log, "features begins") == 0
        again = fit(parameters, log, **often)
        assert (again["outcome"], again["warnings"]) == (expected, [])
        if killed_in_pass:
            # 12 batches for students and 15 for features; a shard of two is done again at most.
            in_pass += 1
            assert count(log, "batch begins") <= 12 + 15 + 2
        assert list(folder.iterdir()) == []
    assert in_pass >= 4, "few moments are in the pass: the test tests little"


@needs_fork
def test_a_fit_that_is_killed_again_and_again_comes_to_its_end(fit, tmp_path):
    whole = fit(BLOCK | {"checkpoint_dir": tmp_path / "whole"})
    log, parameters = tmp_path / "log", BLOCK | {"checkpoint_dir": tmp_path / "checkpoints"}
    for n_killed, share in enumerate((0.5, 0.6, 0.4, 0.7), start=1):
        assert fit(parameters, log, kill_at=int(share * whole["calls"]))["killed"]
        assert count(log, "epoch begins") <= 4 + n_killed
    assert fit(parameters, log)["outcome"] == whole["outcome"]
    assert count(log, "epoch begins") <= 4 + 4


@needs_fork
@pytest.mark.parametrize("memory", ["memory", "joblib"])
def test_a_fit_with_a_memory_goes_on_too(fit, tmp_path, memory):
    expected = fit(BLOCK)["outcome"]
    whole = fit(BLOCK | {"checkpoint_dir": tmp_path / "a", memory: tmp_path / "b"})
    for moment in [*moments(whole["calls"], 4), int(0.97 * whole["calls"])]:
        folder, log = tmp_path / f"{moment}", tmp_path / f"{moment}.log"
        parameters = BLOCK | {"checkpoint_dir": folder / "c", memory: folder / "m"}
        assert fit(parameters, log, kill_at=moment)["killed"]
        again = fit(parameters, log)
        assert (again["outcome"], again["warnings"]) == (expected, [])
        assert count(log, "epoch begins") <= 4 + 1


# Disks that are full


@needs_fork
@pytest.mark.parametrize("parameters", [BLOCK, RIDGE], ids=["block", "ridge"])
def test_files_that_may_not_grow_do_not_stop_a_fit(fit, tmp_path, parameters):
    expected = fit(parameters)["outcome"]
    memory, folder = tmp_path / "memory", tmp_path / "checkpoints"
    parameters = parameters | {"checkpoint_dir": folder, "memory": memory}
    ended = fit(parameters, interval=0, largest_file=20_000)
    assert ended["outcome"] == expected
    kinds = [text.partition(":")[0] for text in ended["warnings"]]
    assert kinds.count("CacheWarning") == 1
    assert kinds.count("CheckpointWarning") >= 1
    assert set(kinds) == {"CacheWarning", "CheckpointWarning"}
    assert list(folder.rglob("*")) == []
    assert fit(parameters)["outcome"] == expected


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("student", ["block", "ridge"])
def test_a_full_disk_does_not_stop_a_fit(student, make_detector, images, small_disk):
    parameters = {"student": student, "max_epochs": 2, "batch_size": 4}
    expected = make_detector(**parameters).fit(images).score_samples(images)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(480 * 1024))
    detector = make_detector(**parameters, checkpoint_dir=small_disk / "c", memory=small_disk / "m")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        detector.fit(images)
    messages = [str(warning.message) for warning in seen]
    assert any("not used any more" in message for message in messages)
    assert any("cannot be written: [Errno 28] No space left" in message for message in messages)
    detector.set_params(memory=None)  # the disk is full still
    np.testing.assert_array_equal(detector.score_samples(images), expected)


# Checkpoints that are of no use


class StopError(Exception):
    """Ends a fit as a crash does."""


class StopBefore:
    """A callback that ends a fit before an epoch, or before another task."""

    def __init__(self, n_epochs: int = 0, task: str = "epoch") -> None:
        self._n_left = n_epochs
        self._task = task

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **kwargs):
        if context.task_name == self._task:
            if self._n_left == 0:
                raise StopError
            self._n_left -= 1

    def on_fit_task_end(self, estimator, context, **kwargs):
        pass

    def teardown(self, estimator, context):
        pass


def stop_after(detector, n_epochs: int, X) -> Path:
    """The folder of the checkpoints of a fit that is stopped after so many epochs."""
    with pytest.raises(StopError):
        detector.set_callbacks(StopBefore(n_epochs)).fit(X)
    detector.set_callbacks()
    (folder,) = Path(detector.checkpoint_dir).iterdir()
    return folder


@pytest.fixture
def make(make_detector, tmp_path):
    def make(**changes):
        return make_detector(**BLOCK | {"checkpoint_dir": tmp_path / "checkpoints"} | changes)

    return make


@pytest.fixture
def expected(make, images):
    return make(checkpoint_dir=None).fit(images).score_samples(images)


def test_the_last_two_checkpoints_are_kept(make, images):
    folder = stop_after(make(), 3, images)
    assert sealed_steps(folder) == [2, 3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def put_text(path: Path) -> None:
    path.write_text("a text")


def put_older(path: Path) -> None:
    shutil.copy(path.parent.parent / "00000002" / path.name, path)


DAMAGES = {
    cut: "it is cut off",
    flip: "does not have the checksum",
    empty: "it is empty",
    put_text: "it is another kind of file",
    Path.unlink: "it has no part '2'",
    put_older: "its part '2' is of another checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, make, images, expected):
    folder = stop_after(make(), 3, images)
    damage(folder / "00000003" / "2.safetensors")
    message = rf"step 3 is unusable: .*{DAMAGES[damage]}.* resumes after step 2\."
    with pytest.warns(CheckpointWarning, match=message) as seen:
        detector = make().fit(images)
    assert sum(warning.category is CheckpointWarning for warning in seen) == 1
    np.testing.assert_array_equal(detector.score_samples(images), expected)


def test_without_a_good_checkpoint_a_fit_starts_anew(make, images, expected):
    folder = stop_after(make(), 3, images)
    for path in folder.glob("*/1.safetensors"):
        cut(path)
    with pytest.warns(CheckpointWarning, match=r"step 3 .*; .*step 2 .* resumes after step 0\."):
        detector = make().fit(images)
    assert len(detector.distillation_.history_) == 4
    np.testing.assert_array_equal(detector.score_samples(images), expected)


def test_half_a_checkpoint_is_none(make, images, expected):
    folder = stop_after(make(), 3, images)
    (folder / "00000003" / "complete.json").unlink()  # it is written last
    np.testing.assert_array_equal(make().fit(images).score_samples(images), expected)


OTHERS = {
    "learning_rate": {"learning_rate": 1e-2},
    "max_epochs": {"max_epochs": 5},
    "batch_size": {"batch_size": 4},
    "random_state": {"random_state": 1},
    "student": {"student": "ridge"},
    "backbone": {"image_size": 48},
    "images held out": {"validation_fraction": 0.5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_other_parameters_is_not_used(name, make, images):
    folder = stop_after(make(), 2, images)
    with pytest.warns(CheckpointWarning, match=f"of another fit, .* differs in .*{name}") as seen:
        detector = make(**OTHERS[name]).fit(images)
    assert any(str(folder) in str(warning.message) for warning in seen)
    assert sealed_steps(folder) == [1, 2]
    plain = make(checkpoint_dir=None, **OTHERS[name]).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), plain.score_samples(images))


def test_a_checkpoint_of_other_images_is_not_used(make, images):
    stop_after(make(), 2, images)
    other = images.copy()
    other[0, 0, 0] += 1
    with pytest.warns(CheckpointWarning, match=r"differs in images\. This fit ignores it and st"):
        detector = make().fit(other)
    plain = make(checkpoint_dir=None).fit(other)
    np.testing.assert_array_equal(detector.score_samples(other), plain.score_samples(other))


def test_a_warning_gives_values_where_people_can_read_them(make, images):
    stop_after(make(), 2, images)
    with pytest.warns(CheckpointWarning, match=r"max_epochs \(4 there, 5 here\)\."):
        make(max_epochs=5).fit(images)


def test_what_does_not_change_students_does_not_end_a_checkpoint(make, images, expected):
    stop_after(make(), 3, images)
    detector = make(contamination=0.5, density="knn", n_jobs=2, activation_cache=0, n_blocks=1)
    detector.set_callbacks(StopBefore(n_epochs=1)).fit(images)  # one epoch is left
    plain = make(contamination=0.5, density="knn", n_blocks=1, checkpoint_dir=None).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), plain.score_samples(images))


def test_a_checkpoint_without_a_block_that_is_asked_for_is_not_used(make, images):
    stop_after(make(n_blocks=1), 2, images)
    with pytest.warns(CheckpointWarning, match=r"it has no part '1'.* after step 0\."):
        detector = make(n_blocks=2).fit(images)
    assert len(detector.distillation_.history_) == 4


@needs_fork
def test_a_fit_at_work_elsewhere_is_nothing_to_warn_of(make, images, fit):
    folder = stop_after(make(), 2, images)
    identity = json.loads((folder / "fit.json").read_text())
    (folder / "fit.json").write_text(json.dumps(identity | {"process": fit(RIDGE)["pid"]}))
    make(max_epochs=2).fit(images)


# When checkpoints come and go


def test_a_fit_that_ended_well_leaves_nothing(make, images, tmp_path):
    make().fit(images)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_fit_stopped_after_its_students_repeats_no_epoch(make, images, expected):
    with pytest.raises(StopError):
        make().set_callbacks(StopBefore(task="features")).fit(images)
    detector = make().set_callbacks(StopBefore(n_epochs=0)).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), expected)


def test_checkpoints_can_wait_for_what_comes_after_a_fit(make, images, expected, tmp_path):
    with pytest.raises(StopError), kept_checkpoints():  # noqa: PT012
        make().fit(images)
        raise StopError
    detector = make().set_callbacks(StopBefore(n_epochs=0))
    with kept_checkpoints():
        detector.fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), expected)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_distillation_alone_goes_on_too(tiny, images, tmp_path):
    options = {"backbone": tiny, "n_blocks": 2, "random_state": 0, **BLOCK}
    distillation = BlockDistillation(**with_student(checkpoint_dir=tmp_path, **options))
    stop_after(distillation, 3, images)
    distillation.set_callbacks(StopBefore(n_epochs=1)).fit(images)
    plain = BlockDistillation(**with_student(**options)).fit(images)
    np.testing.assert_array_equal(distillation.transform(images), plain.transform(images))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"learning_rate_schedule": "constant"}, {"validation_fraction": 0},
     {"patience": 1, "learning_rate": 0.05, "learning_rate_schedule": "constant", "max_epochs": 9},
     {"learning_rate": 0.5, "learning_rate_schedule": "constant"}],  # the first epoch is the best
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("n_epochs", [1, 2])
def test_all_of_the_state_is_restored(n_epochs, options, make, images):
    stop_after(make(**options), n_epochs, images)
    detector, plain = (make(**options, **o).fit(images) for o in ({}, {"checkpoint_dir": None}))
    np.testing.assert_array_equal(detector.score_samples(images), plain.score_samples(images))
    losses = [[epoch["train_loss"] for epoch in d.distillation_.history_]
              for d in (detector, plain)]  # fmt: skip
    np.testing.assert_array_equal(*losses)


def test_a_random_state_is_needed(make, images, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint_dir needs a random_state.* random_state=0"):
        make(random_state=None).fit(images)
    assert not (tmp_path / "checkpoints").exists()


def test_a_generator_of_the_same_state_will_do(make, images):
    stop_after(make(random_state=np.random.RandomState(3)), 3, images)
    generator = np.random.RandomState(3)
    make(random_state=generator).set_callbacks(StopBefore(n_epochs=1)).fit(images)


def test_a_file_is_no_folder_for_checkpoints(make, images, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ValueError, match=r"checkpoints' is a file; checkpoints need a folder"):
        make().fit(images)
