"""Floating types of backbones: what torch tells of a machine, and who is warned."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from precision import set_bfloat16

from skanomaly_vit import BlockDistillation, CompactFeatures, DiskCache, ViTFeatures
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._backbone.precision import has_fast_bfloat16, resolve_dtype
from skanomaly_vit._backbone.teacher import load_teacher, positions_of, same_teacher
from skanomaly_vit.exceptions import PrecisionWarning

CPU = torch.device("cpu")
NAMED = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "random_state": 0}


@pytest.fixture
def able(monkeypatch):
    set_bfloat16(monkeypatch, avx512=True)


@pytest.fixture
def unable(monkeypatch):
    set_bfloat16(monkeypatch)


def load(model="test_vit", *, dtype, seed=0, image_size=32):
    return load_teacher(
        model, pretrained=False, image_size=image_size, device="cpu", seed=seed, dtype=dtype
    )


@pytest.mark.parametrize("instructions", [{"amx": True}, {"avx512": True}, {}])
def test_auto_is_bfloat16_where_torch_tells_of_instructions(monkeypatch, instructions):
    set_bfloat16(monkeypatch, **instructions)
    expected = "bfloat16" if instructions else "float32"
    assert has_fast_bfloat16(CPU) == bool(instructions)
    assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype("bfloat16", CPU) == "bfloat16"
    assert resolve_dtype("float32", CPU) == "float32"


def test_a_torch_that_tells_nothing_has_no_instructions(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_fast_bfloat16(CPU)


def test_instructions_are_of_no_use_without_the_library_that_has_them(able, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_fast_bfloat16(CPU)


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_tell_for_themselves(monkeypatch, unable, supported):
    asked = []

    class Device:
        def __init__(self, device):
            asked.append(device)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def is_supported(*, including_emulation):
        assert not including_emulation
        return supported

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    device = torch.device("cuda", 1)
    assert has_fast_bfloat16(device) == supported
    assert asked == [device]


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="it has the device")
def test_a_gpu_that_cannot_multiply_has_no_bfloat16():
    assert not has_fast_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_in_bfloat16_are_close_and_do_not_depend_on_the_neighbours(name, images, able):
    whole, half = (ViTFeatures(backbone=family(name), dtype=d).fit(images)
                   for d in ("float32", "bfloat16"))  # fmt: skip
    expected, found = whole.transform(images), half.transform(images)
    assert (whole.dtype_, half.dtype_) == ("float32", "bfloat16")
    assert found.dtype == np.float32
    assert (found != expected).any()
    cosines = (expected * found).sum(1) / np.linalg.norm(expected, axis=1)
    cosines /= np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.99
    for size in (1, 2, 5):
        np.testing.assert_array_equal(half.transform(images[:size]), found[:size])


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_discrepancies_in_bfloat16_do_not_depend_on_the_neighbours(make_detector, images, able,
                                                                   student):  # fmt: skip
    distillation = make_detector(student=student, dtype="bfloat16").fit(images).distillation_
    together = distillation.transform(images)
    alone = np.concatenate([distillation.transform(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together[:5], alone, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "auto"])
def test_a_network_of_another_type_keeps_it(images, able, dtype, wanted):
    features = ViTFeatures(backbone=family("class token").to(dtype), dtype=wanted).fit(images)
    assert features.dtype_ == str(dtype).removeprefix("torch.")
    assert features._held_teacher().dtype == dtype


def test_the_network_that_was_passed_is_left_alone(images, able, tiny):
    ViTFeatures(backbone=tiny, dtype="bfloat16").fit(images)
    assert next(tiny.parameters()).dtype == torch.float32


def test_types_have_fingerprints_of_their_own():
    whole, half = load(dtype="float32"), load(dtype="bfloat16")
    assert not whole.has_fingerprint(half.fingerprint)
    assert not half.has_fingerprint(whole.fingerprint)
    assert half.has_fingerprint(load(dtype="bfloat16").fingerprint)
    assert not half.has_fingerprint(load(dtype="bfloat16", seed=1).fingerprint)


def test_positions_that_another_processor_rounds_otherwise_are_mended():
    """In bfloat16, the next number is up to a hundredth away."""
    own = load(dtype="bfloat16")
    positions = positions_of(own.model)
    elsewhere = load(dtype="bfloat16")
    with torch.no_grad():
        values = elsewhere.model.pos_embed.view(-1)
        largest = values.abs().argmax()
        values[largest] = torch.nextafter(values[largest], 2 * values[largest])
    assert not elsewhere.has_fingerprint(own.fingerprint)
    assert same_teacher(elsewhere, own.fingerprint, positions).has_fingerprint(own.fingerprint)
    assert same_teacher(elsewhere, own.fingerprint, positions.roll(1)) is None


def test_types_share_no_entry_of_a_memory(images, able, tmp_path):
    memory = DiskCache(tmp_path)
    for dtype in ("float32", "bfloat16", "float32"):
        alone, cached = (
            ViTFeatures(**NAMED, dtype=dtype, memory=m).fit(images) for m in (None, memory)
        )
        np.testing.assert_array_equal(alone.transform(images), cached.transform(images))
    alone, cached = (
        BlockDistillation(**NAMED, n_blocks=2, dtype="bfloat16", memory=m).fit(images)
        for m in (None, memory)
    )
    np.testing.assert_array_equal(alone.transform(images), cached.transform(images))


def test_workers_load_the_type_that_fit_has_decided(images, monkeypatch):
    set_bfloat16(monkeypatch, avx512=True)
    monkeypatch.setattr(_passes, "IMAGES_PER_SHARD", 8)
    options = NAMED | {"dtype": "auto", "batch_size": 4}
    alone = ViTFeatures(**options).fit(images)
    expected = alone.transform(images)
    set_bfloat16(monkeypatch)  # processes of loky have instructions or not, as it happens
    with joblib.parallel_config(backend="loky", n_jobs=2), pytest.warns(PrecisionWarning):
        alone._teacher = None
        np.testing.assert_array_equal(alone.transform(images), expected)


# The warning


def test_bfloat16_on_a_machine_without_it_is_told_with_reason_and_cost(images, unable):
    message = "neither AVX512-BF16 nor AMX.* seven times as long as in float32.*dtype='float32'"
    with pytest.warns(PrecisionWarning, match=message) as caught:
        features = ViTFeatures(**NAMED, dtype="bfloat16").fit(images)
        features.transform(images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert features.dtype_ == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_other_types_give_no_warning(images, unable, dtype):
    assert ViTFeatures(**NAMED, dtype=dtype).fit(images).dtype_ == "float32"


def test_a_network_given_in_bfloat16_gives_no_warning(images, unable):
    ViTFeatures(backbone=family("class token").bfloat16()).fit(images).transform(images)


def test_a_parameter_that_is_no_type_is_refused(images):
    for dtype in ("float16", torch.bfloat16, None):
        with pytest.raises(ValueError, match="'dtype' parameter of ViTFeatures must be"):
            ViTFeatures(dtype=dtype).fit(images)


def test_tuned_features_train_in_the_type_of_the_weights(tiny, images):
    assert "dtype" not in CompactFeatures().get_params()
    features = CompactFeatures(backbone=tiny, max_epochs=1, random_state=0).fit(images)
    assert features.dtype_ == "float32"
