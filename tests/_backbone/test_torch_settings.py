"""Settings of torch that change results: part of every key, and sent along with work."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from skanomaly_vit import BlockDistillation
from skanomaly_vit._caching.memory import surroundings
from skanomaly_vit._utils.torch_settings import settings_here, under


def set_flag(owner, name, value):
    setattr(owner, name, value)


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn

SETTINGS = {
    "matmul precision": (torch.set_float32_matmul_precision, "medium", "highest"),
    "TF32 of products": (partial(set_flag, MATMUL, "allow_tf32"), True, False),
    "TF32 of convolutions": (partial(set_flag, CUDNN, "allow_tf32"), False, True),
    "sums in float16": (
        partial(set_flag, MATMUL, "allow_fp16_reduced_precision_reduction"), False, True,
    ),
    "sums in bfloat16": (
        partial(set_flag, MATMUL, "allow_bf16_reduced_precision_reduction"), False, True,
    ),
    "deterministic cuDNN": (partial(set_flag, CUDNN, "deterministic"), True, False),
    "deterministic algorithms": (torch.use_deterministic_algorithms, True, False),
    "default dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    "attention kernels": (torch.backends.cuda.enable_flash_sdp, False, True),
}  # fmt: skip


@pytest.fixture(params=SETTINGS)
def other_setting(request):
    """Sets one setting to another value, and back again at the end."""
    change, value, default = SETTINGS[request.param]
    yield partial(change, value)
    change(default)


def test_each_setting_is_part_of_what_keys_depend_on(other_setting):
    before = surroundings(torch.device("cpu"))
    other_setting()
    assert surroundings(torch.device("cpu")) != before


def test_autocast_is_part_of_what_keys_depend_on():
    found = [surroundings(torch.device("cpu"))]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found.append(surroundings(torch.device("cpu")))
    assert len(set(map(tuple, found))) == 3
    assert surroundings(torch.device("cpu")) == found[0]


def test_settings_that_are_set_back_give_the_keys_of_before():
    before = surroundings(torch.device("cpu"))
    torch.set_float32_matmul_precision("medium")
    torch.set_float32_matmul_precision("highest")
    assert surroundings(torch.device("cpu")) == before


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_were_sent_hold_for_a_while(name):
    change, value, default = SETTINGS[name]
    change(value)
    try:
        sent = settings_here()
    finally:
        change(default)
    usual = settings_here()
    assert sent != usual
    with under(sent):
        assert settings_here() == sent
    assert settings_here() == usual


def test_a_student_of_another_precision_is_not_recalled(images, tmp_path):
    def discrepancies(**options):
        options |= {"backbone": "skanomaly_tiny", "pretrained": False, "random_state": 0}
        return BlockDistillation(n_blocks=1, **options).fit(images).transform(images)

    discrepancies(memory=tmp_path)
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(discrepancies(memory=tmp_path), discrepancies())
    finally:
        torch.set_float32_matmul_precision("highest")


PROGRAM = """
import joblib, numpy as np, sys, torch
from skanomaly_vit import ViTFeatures
torch.set_num_threads(1)
torch.set_float32_matmul_precision(sys.argv[1])
X = np.random.default_rng(0).integers(0, 256, (24, 56, 56, 3), dtype=np.uint8)
features = ViTFeatures(image_size=56, batch_size=8, random_state=0).fit(X[:2])
with torch.autocast("cpu", dtype=torch.bfloat16, enabled=sys.argv[2] == "autocast"):
    alone = features.transform(X)
    import skanomaly_vit._backbone.passes as passes
    passes.IMAGES_PER_SHARD = 8
    with joblib.parallel_config(sys.argv[3], n_jobs=2):
        shared = features.transform(X)
print(np.array_equal(alone, shared))
"""


@pytest.mark.parametrize(
    ("precision", "autocast", "backend"),
    [("medium", "", "loky"), ("highest", "autocast", "loky"), ("highest", "autocast", "threading")],
)
def test_workers_run_under_the_settings_of_their_sender(precision, autocast, backend):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, precision, autocast, backend],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "True"
