"""calibration="cross": every image calibrates, by the score of a model that has not seen it."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
from images import blobs

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.detector import _detector
from skanomaly_vit.detector._cross_calibration import folds_of
from skanomaly_vit.exceptions import CalibrationWarning

STUDENTS = pytest.mark.parametrize(
    "options", [{}, {"student": "block"}, {"feature_spaces": "pretrained"}], ids=str
)


@pytest.fixture
def cross(make_detector):
    def make(**options):
        return make_detector(calibration="cross", contamination=0.2, **options)

    return make


@STUDENTS
def test_scores_come_from_models_that_have_not_learned_from_the_image(
    cross, make_detector, images, monkeypatch, options
):
    halves = np.arange(10), np.arange(10, 20)
    monkeypatch.setattr(_detector, "folds_of", lambda units, seed: [halves, halves[::-1]])
    detector = cross(**options).fit(images)
    for train, left_out in (halves, halves[::-1]):
        other = make_detector(validation_fraction=0.0, **options).fit(images[train])
        np.testing.assert_allclose(
            detector.calibration_scores_[left_out],
            other.score_samples(images[left_out]),
            # Block students have other seeds, and a score may be close to 0.
            **({"rtol": 0.05, "atol": 0.1} if "student" in options else {"rtol": 1e-5}),
        )


@STUDENTS
def test_the_model_is_one_of_those_that_calibrate(cross, images, odd_images, options):
    detector = cross(**options).fit(images)
    left_out = detector.validation_indices_
    assert len(left_out) == 2
    np.testing.assert_allclose(
        detector.score_samples(images[left_out]), detector.calibration_scores_[left_out], rtol=1e-5
    )
    other = cross(validation_fraction=0.7, **options).fit(images)
    np.testing.assert_array_equal(other.calibration_scores_, detector.calibration_scores_)
    assert detector.offset_ == conformal_threshold(detector.calibration_scores_, 0.2)
    assert detector.p_values(odd_images).min() == 1 / 21


def test_neither_memory_nor_workers_change_a_score(cross, images, tmp_path):
    expected = cross().fit(images).calibration_scores_
    found = cross(memory=tmp_path).fit(images).calibration_scores_
    np.testing.assert_array_equal(found, expected)
    with joblib.parallel_config("threading", n_jobs=2):
        found = cross().fit(images).calibration_scores_
    np.testing.assert_array_equal(found, expected)


def test_units_are_left_out_as_a_whole(cross, images):
    groups = np.repeat(range(5), 4)
    seen = []
    for train, left_out in folds_of(groups.astype(float), 0):
        assert not set(groups[train]) & set(groups[left_out])
        seen += left_out.tolist()
    assert sorted(seen) == list(range(20))
    assert len(list(folds_of(np.arange(60.0), 0))) == 10
    detector = cross().fit(images, groups=groups)
    assert len(np.unique(detector.calibration_units_)) == 5
    copies = np.repeat(images[:10], 2, axis=0)
    assert len(np.unique(cross().fit(copies).calibration_units_)) == 10


def test_one_group_leaves_nothing_out(cross, images):
    with pytest.raises(ValueError, match="none can be left out; pass other images, groups=None"):
        cross().fit(images, groups=["a"] * 20)


def test_thresholds_move_without_a_certificate(cross, images):
    detector = cross().fit(images).set_threshold(target_fpr=0.5)
    assert detector.offset_ == conformal_threshold(detector.calibration_scores_, 0.5)
    with pytest.raises(ValueError, match=r"calibration='cross', whose .* certify no rate"):
        detector.set_threshold(target_fpr=0.5, confidence=0.5)
    with pytest.raises(ValueError, match="certify no rate"):
        detector.false_alarm_bound()


def test_partial_fit_says_what_to_do_instead(cross, images, odd_images):
    detector = cross().fit(images)
    scores = detector.score_samples(odd_images)
    with pytest.raises(
        ValueError, match="Fit again to all images, or fit with calibration='split'"
    ):
        detector.set_params(calibration="split").partial_fit(["no such file"])
    np.testing.assert_array_equal(detector.score_samples(odd_images), scores)


def test_calibrate_adds_to_all_images_or_replaces_them(cross, images, rng):
    new, more = blobs(rng, 10), blobs(rng, 10)
    detector = cross().fit(images)
    before = detector.calibration_scores_
    detector.calibrate(new)
    np.testing.assert_array_equal(detector.calibration_scores_[:20], before)
    assert len(detector.calibration_scores_) == 30
    detector.calibrate(new, replace=True)
    assert len(detector.calibration_scores_) == 10
    detector.partial_fit(more).false_alarm_bound()


def test_files_and_pickles_know_of_it(images, tmp_path, odd_images):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0,
        contamination=0.2, calibration="cross",
    ).fit(images)  # fmt: skip
    detector.save(tmp_path / "m")
    for again in (TransformalyDetector.load(tmp_path / "m"), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(again.p_values(odd_images), detector.p_values(odd_images))
        with pytest.raises(ValueError, match="fit used calibration='cross'"):
            again.partial_fit(odd_images)


def test_a_fit_on_few_different_images_says_what_scores_are_worth(make_detector, rng):
    few = np.tile(blobs(rng, 19), (2, 1, 1, 1))
    options = {"contamination": 0.5, "validation_fraction": 0.0}
    with pytest.warns(CalibrationWarning, match="learns from 19 different images, fewer than 20"):
        make_detector(**options).fit(few)


def test_a_fit_on_enough_different_images_is_silent(make_detector, rng, recwarn):
    make_detector(contamination=0.5, validation_fraction=0.0).fit(blobs(rng, 20))
    assert not [each for each in recwarn if each.category is CalibrationWarning]


def test_images_of_all_models_suffice_for_a_rate(make_detector, rng, recwarn):
    make_detector(calibration="cross", contamination=0.05).fit(blobs(rng, 30))
    assert not [each for each in recwarn if each.category is CalibrationWarning]
