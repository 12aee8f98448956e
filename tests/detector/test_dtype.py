"""Detectors whose backbone works in bfloat16: scores, files, pickles, updates."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from images import blobs
from precision import set_bfloat16
from sklearn.base import BaseEstimator, clone
from students import with_student

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.exceptions import PrecisionWarning
from skanomaly_vit.onnx import export_onnx
from skanomaly_vit.persistence import model_card

IMAGES = blobs(np.random.default_rng(0), 24)
ODD = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
BOTH = np.concatenate([IMAGES, ODD])


@pytest.fixture(autouse=True)
def able(monkeypatch):
    set_bfloat16(monkeypatch, avx512=True)


def make(**parameters):
    options = {"image_size": 56, "n_blocks": 2, "contamination": 0.2, "random_state": 0}
    return TransformalyDetector(**with_student(**options | {"max_epochs": 1} | parameters))


@pytest.fixture(scope="module")
def in_float32():
    return make().fit(IMAGES)


@pytest.fixture(scope="module")
def half():
    with pytest.MonkeyPatch.context() as patch:
        set_bfloat16(patch, avx512=True)
        return make(dtype="bfloat16").fit(IMAGES)


def rank_correlation(a, b):
    return np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]


def test_scores_are_close_to_those_of_float32(in_float32, half):
    assert (in_float32.dtype_, half.dtype_) == ("float32", "bfloat16")
    assert half.features_.dtype_ == half.distillation_.dtype_ == "bfloat16"
    expected, found = (each.score_samples(BOTH) for each in (in_float32, half))
    assert (found != expected).any()
    assert rank_correlation(found, expected) > 0.95
    np.testing.assert_array_equal(half.predict(ODD), -1)
    maps, others = (each.anomaly_map(ODD) for each in (half, in_float32))
    assert np.corrcoef(maps.ravel(), others.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("method", ["features", "discrepancy"])
def test_maps_are_in_the_unit_of_those_of_float32(in_float32, half, method):
    maps, expected = (each.anomaly_map(IMAGES, method=method) for each in (half, in_float32))
    np.testing.assert_allclose(maps.mean(), expected.mean(), atol=0.1)
    np.testing.assert_allclose(maps.std(), expected.std(), rtol=0.05)
    assert np.abs(maps - expected).mean() < 0.1


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_students_of_bfloat16_err_as_those_of_float32_do(student):
    whole, half = (make(student=student, dtype=d, max_epochs=3).fit(IMAGES)
                   for d in ("float32", "bfloat16"))  # fmt: skip
    errors, expected = (each.distillation_.transform(BOTH) for each in (half, whole))
    assert errors.dtype == np.float32
    np.testing.assert_allclose(errors, expected, rtol=0.2)
    np.testing.assert_allclose(errors.mean(axis=0), expected.mean(axis=0), rtol=0.05)
    losses = [each.distillation_.history_[-1]["train_loss"] for each in (half, whole)]
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_students_of_ones_own_see_float32():
    class Noting(BaseEstimator):
        """Predicts the tokens themselves."""

        def fit(self, batches):
            seen.update(tokens.dtype for pair in batches for tokens in pair)
            return self

        def predict(self, tokens):
            seen.add(tokens.dtype)
            return tokens

    seen = set()
    make(student=Noting(), dtype="bfloat16").fit(IMAGES)
    assert seen == {torch.float32}


def test_no_bit_depends_on_the_batch(half):
    together = half.score_samples(BOTH)
    for size in (1, 3):
        parts = [half.score_samples(BOTH[i : i + size]) for i in range(0, len(BOTH), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    other = pickle.loads(pickle.dumps(half)).set_params(batch_size=7)
    np.testing.assert_array_equal(other.score_samples(BOTH), together)


def test_parameters_are_those_of_scikit_learn(half):
    assert half.get_params()["dtype"] == "bfloat16"
    copied = clone(half)
    assert copied.dtype == "bfloat16"
    assert not hasattr(copied, "dtype_")
    np.testing.assert_array_equal(copied.fit(IMAGES).score_samples(BOTH), half.score_samples(BOTH))
    assert copied.set_params(dtype="float32").fit(IMAGES).dtype_ == "float32"


def test_memory_and_kept_tokens_change_no_bit(half, tmp_path):
    for options in ({"memory": str(tmp_path)}, {"memory": str(tmp_path)}, {"activation_cache": 0}):
        found = make(dtype="bfloat16", **options).fit(IMAGES)
        np.testing.assert_array_equal(found.score_samples(BOTH), half.score_samples(BOTH))


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("store_backbone", [False, True])
def test_files_and_pickles_keep_the_type(student, store_backbone, tmp_path):
    detector = make(dtype="auto", student=student, store_backbone=store_backbone).fit(IMAGES)
    assert detector.dtype_ == "bfloat16"
    scores = detector.score_samples(BOTH)
    detector.save(tmp_path / "m")
    for loaded in (
        TransformalyDetector.load(tmp_path / "m"),
        pickle.loads(pickle.dumps(detector)),
    ):
        assert (loaded.dtype, loaded.dtype_) == ("auto", "bfloat16")
        assert loaded.features_.dtype_ == loaded.distillation_.dtype_ == "bfloat16"
        np.testing.assert_array_equal(loaded.score_samples(BOTH), scores)
    assert model_card(tmp_path / "m")["dtype"] == "bfloat16"
    assert "embedded in bfloat16" in detector._repr_html_()


@pytest.mark.parametrize("store_backbone", [False, True])
def test_a_fitted_model_keeps_bfloat16_where_it_is_slow_and_says_so(
    monkeypatch, tmp_path, store_backbone
):
    detector = make(dtype="auto", store_backbone=store_backbone).fit(IMAGES)
    scores = detector.score_samples(BOTH)
    detector.save(tmp_path / "m")
    pickled = pickle.dumps(detector)
    set_bfloat16(monkeypatch)
    for loaded in (TransformalyDetector.load(tmp_path / "m"), pickle.loads(pickled)):
        with pytest.warns(PrecisionWarning, match="A fitted model keeps its type"):
            found = loaded.score_samples(BOTH)
        np.testing.assert_array_equal(found, scores)
        loaded.score_samples(BOTH)  # once is enough
    assert make(dtype="auto").fit(IMAGES).dtype_ == "float32"


def test_a_fitted_model_keeps_float32_where_bfloat16_is_fast(in_float32, monkeypatch):
    set_bfloat16(monkeypatch)
    detector = make(dtype="auto").fit(IMAGES)
    pickled = pickle.dumps(detector)
    set_bfloat16(monkeypatch, amx=True)
    loaded = pickle.loads(pickled)
    np.testing.assert_array_equal(loaded.score_samples(BOTH), in_float32.score_samples(BOTH))
    assert loaded.dtype_ == "float32"


@pytest.mark.parametrize("student_dtype", [None, "float16"])
def test_updates_go_on_in_the_type_of_the_fit(student_dtype, monkeypatch):
    options = {"dtype": "auto", "student_dtype": student_dtype, "density": "gaussian"}
    detector = make(**options).fit(IMAGES)
    more = blobs(np.random.default_rng(2), 24)
    set_bfloat16(monkeypatch)  # auto would be float32 now
    detector.partial_fit(more)
    assert detector.dtype_ == "bfloat16"
    assert detector.features_._held_teacher().dtype == torch.bfloat16
    set_bfloat16(monkeypatch, avx512=True)
    at_once = make(**options).fit(np.concatenate([IMAGES, more]))
    errors, expected = (each.distillation_.transform(ODD) for each in (detector, at_once))
    np.testing.assert_allclose(errors, expected, rtol=0.1)


def test_a_file_that_contradicts_itself_is_refused(half, tmp_path, monkeypatch):
    monkeypatch.setattr(half.features_, "dtype_", "float32")
    half.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"features\.dtype is float32, its positions torch.bfloat"):
        TransformalyDetector.load(tmp_path / "m")


def test_an_export_is_refused_with_the_way_out(half, tmp_path):
    with pytest.raises(ValueError, match=r"of torch\.bfloat16.*fit with dtype='float32'"):
        export_onnx(half, tmp_path / "a.onnx")
