"""Weights of feature spaces, learned from known defects."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blobs

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.detector._fusion_weights import learn_weights

IMAGES = blobs(np.random.default_rng(0), 40)
FRESH = blobs(np.random.default_rng(1), 40)
DEFECTS = blobs(np.random.default_rng(2), 12)
DEFECTS[:, 10:16, 8:16] = 255


def make(**parameters):
    options = {"image_size": 56, "n_blocks": 2, "contamination": 0.2, "random_state": 0}
    return TransformalyDetector(**options | parameters)


@pytest.fixture(scope="module")
def fitted():
    return make().fit(IMAGES)


def copy_of(detector):
    return pickle.loads(pickle.dumps(detector))


def test_without_defects_it_is_the_unsupervised_detector(fitted):
    tuned = copy_of(fitted).tune_fusion(DEFECTS).tune_fusion()
    assert set(tuned.fusion_weights_.values()) == {1.0}
    np.testing.assert_allclose(tuned.score_samples(FRESH), fitted.score_samples(FRESH), rtol=1e-12)
    assert tuned.offset_ == pytest.approx(fitted.offset_, rel=1e-12)
    assert set(fitted.fusion_weights_.values()) == {1.0}


def test_weights_change_and_neither_densities_nor_calibration_images_do(fitted):
    tuned = copy_of(fitted).tune_fusion(DEFECTS)
    weights = tuned.fusion_weights_
    assert weights.keys() == fitted.density_.keys()
    assert np.mean(list(weights.values())) == pytest.approx(1)
    assert len(set(weights.values())) > 1
    before, after = fitted._score_parts(FRESH), tuned._score_parts(FRESH)
    for space, weight in weights.items():
        np.testing.assert_allclose(after[space], weight * before[space])
    held_out = tuned.score_samples(IMAGES[tuned.validation_indices_])
    np.testing.assert_allclose(np.sort(tuned.calibration_scores_), np.sort(held_out))
    flagged = (tuned.calibration_scores_ < tuned.offset_).mean()
    assert flagged <= tuned.contamination


def test_the_same_defects_give_the_same_weights_however_often(fitted):
    once = copy_of(fitted).tune_fusion(DEFECTS)
    twice = copy_of(fitted).tune_fusion(FRESH[:3]).tune_fusion(DEFECTS)
    assert twice.fusion_weights_ == pytest.approx(once.fusion_weights_, abs=1e-6)


def test_a_space_that_shows_the_defect_gains_weight():
    rng = np.random.default_rng(0)
    normal = {space: rng.normal(size=200) for space in "abc"}
    defects = {space: rng.normal(size=20) for space in "abc"}
    defects["b"] -= 4
    weights = learn_weights(normal, defects)
    assert weights["b"] > 1.3 > max(weights["a"], weights["c"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 25), st.floats(-1e6, 3))
def test_weights_are_positive_of_mean_one_and_near_one_for_few(seed, n_defects, shift):
    rng = np.random.default_rng(seed)
    normal = {space: rng.normal(size=50) for space in "abcd"}
    defects = {space: rng.normal(size=n_defects) for space in "abcd"}
    defects["a"] = defects["a"] + shift
    weights = learn_weights(normal, defects)
    values = np.array(list(weights.values()))
    assert values.mean() == pytest.approx(1)
    assert (values > 0).all()
    if n_defects == 0:
        assert (values == 1).all()
    if n_defects == 1:
        assert (abs(values - 1) < 0.9).all()


def test_a_model_file_keeps_the_weights_and_the_log(fitted, tmp_path):
    tuned = copy_of(fitted).tune_fusion(DEFECTS)
    tuned.save(tmp_path / "m.skanomaly")
    loaded = TransformalyDetector.load(tmp_path / "m.skanomaly")
    assert loaded.fusion_weights_ == tuned.fusion_weights_
    assert loaded._updates[-1]["what"] == "tune_fusion"
    assert loaded._updates[-1]["n_images"] == 12
    np.testing.assert_array_equal(loaded.score_samples(FRESH), tuned.score_samples(FRESH))


def test_partial_fit_keeps_the_weights_and_fit_does_not(fitted):
    tuned = copy_of(fitted).tune_fusion(DEFECTS)
    weights = tuned.fusion_weights_
    updated = copy_of(tuned).partial_fit(FRESH)
    plain = copy_of(fitted).partial_fit(FRESH)
    assert updated.fusion_weights_ == weights
    for space, weight in weights.items():
        assert updated.fusion_[space][1] == pytest.approx(plain.fusion_[space][1] / weight)
    assert set(tuned.fit(IMAGES).fusion_weights_.values()) == {1.0}


def test_false_alarms_keep_their_rate(fitted):
    # The seeds are fixed, and so is the share; the rate that was asked for is 0.2.
    shares = []
    for seed in range(4):
        images = blobs(np.random.default_rng(50 + seed), 100)
        detector = make(random_state=seed).fit(images[:50]).tune_fusion(DEFECTS)
        shares.append((detector.predict(images[50:]) == -1).mean())
    assert np.mean(shares) < 0.32


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tiles": (2, 2), "tile_density": "position"}, "fit used tile_density='position'"),
        ({"calibration": "cross"}, "calibration='cross'"),
        ({"fusion": "product", "density": "gaussian"}, "fusion='product'"),
        ({"feature_spaces": "discrepancy"}, "one feature space only"),
    ],
)
def test_detectors_without_weights_refuse(parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters).fit(IMAGES).tune_fusion(DEFECTS)


def test_images_that_are_known_as_normal_are_refused(fitted):
    given = np.concatenate([DEFECTS[:2], IMAGES[3:5]])
    with pytest.raises(ValueError, match=r"knows 2 of 4 defects as normal images \(the first"):
        copy_of(fitted).tune_fusion(given)
