"""What a network is: two that give other features never pass for one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial

import joblib
import numpy as np
import pytest
import timm
import torch
from backbones import FAMILIES, family
from torch import nn

from skanomaly_vit import ViTFeatures
from skanomaly_vit._backbone import fingerprints
from skanomaly_vit._backbone.teacher import Teacher, load_teacher, positions_of, same_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


def vit(**options) -> nn.Module:
    """One of many networks that have the same weights."""
    common = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_classes": 0}
    torch.manual_seed(0)
    make = timm.models.vision_transformer.VisionTransformer
    return make(**common | {"num_heads": 4} | options)


def changed(change) -> nn.Module:
    model = vit()
    change(model)
    return model


def set_on(path: str, name: str, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


def with_buffer(value: float) -> nn.Module:
    model = vit()
    model.blocks[0].register_buffer("table", torch.tensor([value]), persistent=False)
    return model


class Scaled(nn.Module):
    """The activation of a user, whose code the attributes do not tell."""

    def __init__(self, function):
        super().__init__()
        self._function = function

    def forward(self, tokens):
        return self._function(tokens)


OTHERS = {
    "heads": lambda: vit(num_heads=1),
    "activation": lambda: vit(act_layer="quick_gelu"),
    "approximation of it": lambda: vit(act_layer="gelu_tanh"),
    "pooling": lambda: vit(global_pool="avg", fc_norm=False),
    "eps of a norm": lambda: vit(norm_layer=partial(nn.LayerNorm, eps=2e-6)),
    "scale of attention": lambda: changed(set_on("blocks.0.attn", "scale", 0.3)),
    "an attribute": lambda: changed(set_on("blocks.1", "factor", 2.0)),
    "a type": lambda: changed(set_on("blocks.1", "kind", torch.float16)),
    "a function": lambda: changed(set_on("blocks.1", "function", torch.relu)),
    "a module less": lambda: changed(set_on("blocks.1", "norm2", nn.Identity())),
    "a buffer that no state has": lambda: with_buffer(1.0),
    "another such buffer": lambda: with_buffer(1.0001),
    "code alone": lambda: changed(set_on("blocks.1.mlp", "act", Scaled(torch.sin))),
    "other code": lambda: changed(set_on("blocks.1.mlp", "act", Scaled(torch.cos))),
}


def as_teacher(model: nn.Module | str, **options) -> Teacher:
    defaults = {"pretrained": False, "image_size": None, "device": "cpu", "seed": 0}
    if isinstance(model, nn.Module):
        defaults["pretrained"] = True
    return load_teacher(model, **defaults | options)


@pytest.mark.parametrize("other", OTHERS)
def test_networks_of_equal_weights_that_differ_are_no_same_teacher(other):
    plain, differing = as_teacher(vit()), as_teacher(OTHERS[other]())
    assert plain.fingerprint != differing.fingerprint
    assert same_teacher(plain, differing.fingerprint, None) is None
    assert same_teacher(differing, plain.fingerprint, None) is None


def test_each_change_has_a_fingerprint_of_its_own():
    assert len({as_teacher(make()).fingerprint for make in OTHERS.values()}) == len(OTHERS)


@pytest.mark.parametrize(
    "lasting", ["heads", "activation", "pooling", "eps of a norm", "code alone"]
)
def test_another_version_of_timm_does_not_hide_a_difference(lasting, monkeypatch):
    other = as_teacher(OTHERS[lasting]()).fingerprint
    monkeypatch.setattr(fingerprints, "_environment", lambda: "another")
    assert not as_teacher(vit()).has_fingerprint(other)


def test_an_attribute_that_another_version_of_timm_adds_is_no_difference(monkeypatch):
    known = as_teacher(vit()).fingerprint
    monkeypatch.setattr(fingerprints, "_environment", lambda: "another")
    assert as_teacher(changed(set_on("blocks.1", "novelty", 2.0))).has_fingerprint(known)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_and_a_network_that_has_worked_have_the_same_fingerprint(name):
    model = family(name)
    first, second = as_teacher(model), as_teacher(copy.deepcopy(model))
    second(torch.randn(2, 3, *second.preprocessing.image_size), blocks=(), visit=lambda call: None)
    assert first.fingerprint == second.fingerprint


def test_the_same_network_with_rounding_of_another_device_is_the_same(monkeypatch):
    teacher, other = as_teacher(vit()), as_teacher(vit())
    shadows = fingerprints.shadows_of
    monkeypatch.setattr(
        "skanomaly_vit._backbone.teacher.shadows_of", lambda f: shadows(f * (1 + 1e-4))
    )
    assert teacher.has_fingerprint(other.fingerprint)
    assert other.has_fingerprint(teacher.fingerprint)


@pytest.mark.parametrize("text", ["2:", "2:a.b.c.d", "2:a.b.c.====", "2:...", "", "x"])
def test_what_is_no_fingerprint_is_that_of_no_network(text):
    assert not as_teacher(vit()).has_fingerprint(text)


def test_a_fingerprint_of_the_first_rule_is_compared_by_it():
    teacher = as_teacher(vit())
    known = fingerprints.digest_of_first_rule(teacher.model, teacher.preprocessing)
    assert teacher.has_fingerprint(known)
    with torch.no_grad():
        other = changed(lambda model: model.blocks[0].mlp.fc1.weight.add_(1e-6))
    assert not as_teacher(other).has_fingerprint(known)


def test_settings_of_torch_do_not_change_the_fingerprint():
    known = as_teacher(vit()).fingerprint
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert as_teacher(vit()).fingerprint == known
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "environment", [{"ATEN_CPU_CAPABILITY": "default"}, {"OMP_NUM_THREADS": "2"}]
)
def test_another_processor_or_number_of_threads_knows_the_network(environment, tmp_path):
    own = as_teacher("embedded", pretrained=True)
    torch.save(positions_of(own.model), tmp_path / "positions.pt")
    code = (
        "import sys, torch\n"
        "from skanomaly_vit._backbone.teacher import load_teacher, same_teacher\n"
        "found = load_teacher(\n"
        "    'embedded', pretrained=True, image_size=None, device='cpu', seed=0)\n"
        "print(same_teacher(found, sys.argv[1], torch.load(sys.argv[2])).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, own.fingerprint, tmp_path / "positions.pt"],
        env=os.environ | environment, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert own.has_fingerprint(done.stdout.strip())


@pytest.mark.parametrize("kind", ["folder", "joblib"])
def test_networks_of_equal_weights_share_no_entry_of_a_memory(kind, tmp_path):
    memory = tmp_path if kind == "folder" else joblib.Memory(tmp_path, verbose=0)
    for make in (vit, OTHERS["heads"], OTHERS["activation"], OTHERS["pooling"]):
        model = make()
        alone = ViTFeatures(backbone=model, random_state=0).fit(IMAGES)
        cached = ViTFeatures(backbone=model, random_state=0, memory=memory).fit(IMAGES)
        np.testing.assert_array_equal(alone.transform(IMAGES), cached.transform(IMAGES))


def test_published_names_of_the_same_weights_share_no_entry_of_a_memory(tmp_path):
    names = ("vit_base_patch32_clip_224.openai", "vit_base_patch32_clip_quickgelu_224.openai")
    assert len({timm.get_pretrained_cfg(name).hf_hub_id for name in names}) == 1
    found = []
    for name in names:
        options = {"backbone": name, "pretrained": False, "image_size": 32, "random_state": 0}
        alone = ViTFeatures(**options).fit(IMAGES)
        cached = ViTFeatures(**options, memory=tmp_path).fit(IMAGES)
        np.testing.assert_array_equal(alone.transform(IMAGES), cached.transform(IMAGES))
        found.append(alone.backbone_fingerprint_)
    assert found[0] != found[1]
    assert not as_teacher(names[0], image_size=32, seed=alone._teacher_seed).has_fingerprint(
        found[1]
    )
