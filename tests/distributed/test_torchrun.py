"""torchrun: real processes, with gloo on the CPU, share the work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from images import blobs
from students import with_student

from skanomaly_vit import BlockDistillation, TransformalyDetector
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit.distributed import torchrun

BACKBONE = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "batch_size": 4}

#: What each rank does; it writes what it has found, and what it has worked on, into its own file.
SCRIPT = """
import os, sys
import numpy as np
import torch.distributed as dist
from test_torchrun import BACKBONE, fit_both, make_images
from skanomaly_vit import TransformalyDetector, ViTFeatures
from skanomaly_vit._backbone import passes as _passes, shared_passes as _shards
from skanomaly_vit.distillation import _sharing
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit.distributed import torchrun

_passes.IMAGES_PER_SHARD, _passes.SHARDS_PER_SUM = 8, 1
rank, trained, extracted = int(os.environ["RANK"]), [], []
for place, name, seen, of in (
    (_sharing, "train_students", trained, lambda *a, **k: list(a[1])),
    (_shards, "embed", extracted, lambda *a, **k: [1]),
):
    def noting(*args, run=getattr(place, name), seen=seen, of=of, **options):
        seen.extend(of(*args))
        return run(*args, **options)
    setattr(place, name, noting)

X = make_images()
with torchrun():
    found = fit_both(X)
    # Left to chance, and the same for all.
    unseeded = TransformalyDetector(**BACKBONE, n_blocks=1, contamination=0.2)
    found["chance"] = unseeded.fit(X).score_samples(X)
    # Stopped after its students, and started again.
    checked = {"checkpoint_dir": f"{sys.argv[1]}/checkpoints", "random_state": 0, "n_blocks": 3}
    CachedPasses.extract_normal, extract_normal = None, CachedPasses.extract_normal
    try:
        TransformalyDetector(**BACKBONE | checked).fit(X)
    except TypeError:
        CachedPasses.extract_normal = extract_normal
    found["stopped"] = sorted(os.listdir(checked["checkpoint_dir"]))
    summed = []
    _sharing.sum_part = lambda *args: summed.append(args)
    found["resumed"] = TransformalyDetector(**BACKBONE | checked).fit(X).score_samples(X)
    found["summed"] = len(summed)
    try:
        ViTFeatures(**BACKBONE).fit_transform(X[rank:])
    except ValueError as error:
        found["refused"] = str(error)
assert not dist.is_initialized()
found["alone"] = ViTFeatures(**BACKBONE, random_state=0).fit_transform(X[rank:])
np.savez(f"{sys.argv[1]}/{rank}.npz", trained=trained, extracted=len(extracted), **found)
"""


def make_images() -> np.ndarray:
    return blobs(np.random.default_rng(0), 40)


def fit_both(X: np.ndarray) -> dict[str, np.ndarray]:
    """What a detector of each kind of student is and gives."""
    found = {}
    for student in ("ridge", "block"):
        detector = TransformalyDetector(
            **with_student(
                student=student,
                n_blocks=3,
                max_epochs=2,
                contamination=0.2,
                random_state=0,
                **BACKBONE,
            )
        ).fit(X)
        weights = [s.state_dict().values() for s in detector.distillation_.students_]
        found[f"{student} weights"] = torch.cat([v.flatten() for w in weights for v in w]).numpy()
        found[f"{student} scores"], found[f"{student} maps"] = detector.score_samples(
            X, return_map=True
        )
        found[f"{student} offset"] = np.array(detector.offset_)
    return found


def launch(script, argument, **options):
    """Run a script on two ranks."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*run, script, argument], timeout=300, env=environment, **options)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two ranks have found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    launch(folder / "script.py", folder, check=True)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_every_rank_ends_with_what_one_process_gets_to_the_bit(ranks, student, monkeypatch):
    monkeypatch.setattr(_passes, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(_passes, "SHARDS_PER_SUM", 1)
    alone = fit_both(make_images())
    for found in ranks:
        for name in ("weights", "scores", "maps", "offset"):
            key = f"{student} {name}"
            np.testing.assert_array_equal(found[key], alone[key], err_msg=key)


def test_ranks_go_on_together_from_one_checkpoint(ranks):
    for found in ranks:
        assert len(found["stopped"]) == 1
        assert found["summed"] == 0
        np.testing.assert_array_equal(found["resumed"], found["ridge scores"])


def test_each_rank_trains_other_blocks_and_sees_other_images(ranks):
    trained = [set(found["trained"].tolist()) for found in ranks]
    assert trained[0] | trained[1] == {3, 4, 5}  # the last three of six
    assert not trained[0] & trained[1]
    assert min(int(found["extracted"]) for found in ranks) > 0


def test_what_is_left_to_chance_is_the_same_on_all_ranks(ranks):
    np.testing.assert_array_equal(*(found["chance"] for found in ranks))


def test_ranks_with_different_images_are_told(ranks):
    for found in ranks:
        assert "Ranks [1] have other work than rank 0" in str(found["refused"])


#: Two ranks of which the second differs, at the start or at work, as the first argument says.
DIFFERING = """
import os, sys
import numpy as np
import torch
from test_torchrun import BACKBONE, make_images
from skanomaly_vit import ViTFeatures
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit.distributed import _torchrun, torchrun

_passes.IMAGES_PER_SHARD = 8
rank, kind = int(os.environ["RANK"]), sys.argv[1]
if kind == "setting" and rank == 1:
    torch.use_deterministic_algorithms(True)
if kind == "version" and rank == 1:
    versions = _torchrun.versions
    _torchrun.versions = lambda: versions() | {"timm": "0.0.1"}
with torchrun():
    if kind == "later" and rank == 1:
        torch.backends.cudnn.benchmark = True
    print("reading", flush=True)
    ViTFeatures(**BACKBONE).fit_transform(make_images())
    print("worked", flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("setting", "settings of torch of rank 1: deterministic True (False on rank 0)"),
        ("version", "versions of rank 1: timm 0.0.1 ("),
        ("later", "settings of torch of rank 1: cudnn.benchmark True (False on rank 0)"),
    ],
)
def test_ranks_that_differ_end_in_one_error(kind, message, tmp_path):
    (tmp_path / "script.py").write_text(DIFFERING)
    done = launch(tmp_path / "script.py", kind, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = done.stderr.decode()
    assert done.returncode != 0
    assert message in log
    assert log.count("ValueError: The ranks would get different results") == 1
    assert "rank 0:" not in log.split("ValueError: ")[1].splitlines()[0]
    assert done.stdout.count(b"reading") == (2 if kind == "later" else 0)
    assert b"worked" not in done.stdout


#: Two ranks, of which both or the second meet an error, or the second does not make the call.
FAILING = """
import os, sys
import torch
from test_torchrun import BACKBONE, make_images
from skanomaly_vit import ViTFeatures
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit.distributed import torchrun

_passes.IMAGES_PER_SHARD = 8
rank, kind = int(os.environ["RANK"]), sys.argv[1]
paths = [f"no {i}.png" for i in range(40)]
try:
    with torchrun():
        if rank == 0 or kind in ("both", "caught"):
            X = paths if kind in ("both", "caught") else make_images()
            ViTFeatures(**BACKBONE).fit_transform(X)
        elif kind == "second":
            raise LookupError("no images here")
except ValueError:
    if kind != "caught":
        raise
    print("caught", flush=True)
"""


@pytest.fixture
def failing(tmp_path):
    def failing(kind):
        (tmp_path / "script.py").write_text(FAILING)
        done = launch(
            tmp_path / "script.py", kind, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return failing


def test_an_error_of_all_ranks_is_shown_once(failing):
    code, _, log = failing("both")
    assert code != 0
    assert len(re.findall(r"^.*UnreadableImageError: .*no 0\.png", log, re.M)) == 1


def test_an_error_of_all_ranks_can_be_caught_on_all(failing):
    code, output, _ = failing("caught")
    assert code == 0
    assert output.count("caught") == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("second", "Rank 1 has left the block of `torchrun()` with LookupError: no images here."),
        ("absent", "Rank 1 has left the block of `torchrun()` without making this call"),
    ],
)
def test_a_rank_that_leaves_is_named(failing, kind, message):
    code, _, log = failing(kind)
    assert code != 0
    assert message in log


def test_outside_of_the_block_each_rank_works_alone(ranks):
    assert [len(found["alone"]) for found in ranks] == [40, 39]
    np.testing.assert_array_equal(ranks[0]["alone"][1:], ranks[1]["alone"])


def test_without_ranks_the_error_says_how_to_start_them(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"RANK, WORLD_SIZE.*torchrun --nproc-per-node"):
        torchrun().__enter__()


def test_a_single_rank_works_alone(monkeypatch, tiny, images):
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with torchrun():
        assert torch.distributed.is_initialized()
        BlockDistillation(backbone=tiny, n_blocks=1).fit(images)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("rank", "n_gpus", "index"), [("1", 2, 1), ("5", 4, 1), ("3", 1, 0)])
def test_each_rank_has_a_gpu_of_its_own(monkeypatch, rank, n_gpus, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device(None) == torch.device("cuda", index)
    monkeypatch.delenv("LOCAL_RANK")
    assert resolve_device(None) == torch.device("cuda")
