"""Verdicts of groups of images: several views of one part, calibrated by parts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from images import blobs

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.detector._groups import verdicts_of
from skanomaly_vit.exceptions import CalibrationWarning

IMAGES = blobs(np.random.default_rng(0), 60)
PARTS = np.repeat([f"part {i}" for i in range(20)], 3)


def make(**parameters):
    options = {"image_size": 28, "n_blocks": 1, "contamination": 0.2, "random_state": 0,
               "validation_fraction": 0.3}  # fmt: skip
    return TransformalyDetector(**options | parameters)


@pytest.fixture(scope="module")
def fitted():
    return make().fit(IMAGES, groups=PARTS)


@pytest.mark.parametrize(("aggregate", "of_part"), [("max", np.min), ("mean", np.mean)])
def test_a_part_is_compared_with_held_out_parts(fitted, aggregate, of_part):
    order = np.random.default_rng(1).permutation(12)
    images, parts = blobs(np.random.default_rng(2), 12), np.repeat([7, 3, 5, 1], 3)
    images[4, 8:20, 8:20] = 255
    verdicts = fitted.score_groups(images[order], parts[order], aggregate=aggregate)
    scores = fitted.score_samples(images)
    assert verdicts.groups.tolist() == list(dict.fromkeys(parts[order].tolist()))
    expected = [of_part(scores[parts == part]) for part in verdicts.groups]
    np.testing.assert_allclose(verdicts.scores, expected)
    units = fitted.calibration_units_
    known = np.array([of_part(fitted.calibration_scores_[units == u]) for u in np.unique(units)])
    assert verdicts.n_calibrating == len(known) == 6
    p_values = [(1 + (known <= score).sum()) / 7 for score in expected]
    np.testing.assert_allclose(verdicts.p_values, p_values)
    assert (verdicts.labels == np.where(verdicts.scores < verdicts.offset, -1, 1)).all()
    assert verdicts.labels[verdicts.groups.tolist().index(3)] == -1
    assert verdicts.n_images.tolist() == [3, 3, 3, 3]


def test_false_alarms_of_parts_keep_their_rate():
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(2000):
        effects = rng.normal(size=40).repeat(4)  # views of a part are alike
        scores = effects + rng.normal(size=160)
        parts = np.arange(40).repeat(4)
        known, new = parts < 39, parts == 39
        verdicts = verdicts_of(scores[new], parts[new], aggregate="max", known=scores[known],
                               units=parts[known], rate=0.1)  # fmt: skip
        flagged.append(verdicts.labels[0] == -1)
    assert abs(np.mean(flagged) - 0.1) < 0.02


def test_a_part_with_an_unreadable_image_is_flagged_without_a_score(fitted, tmp_path):
    fitted.set_params(on_error="nan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = [*IMAGES[:5], str(tmp_path / "missing.png")]
            verdicts = fitted.score_groups(images, [1, 1, 1, 2, 2, 2])
    finally:
        fitted.set_params(on_error="raise")
    assert np.isnan(verdicts.scores).tolist() == [False, True]
    assert np.isnan(verdicts.p_values).tolist() == [False, True]
    assert verdicts.labels[1] == -1


def test_parts_of_another_size_are_told(fitted):
    with pytest.warns(CalibrationWarning, match=r"1 of 2 groups .* \(3\): 'b' has 2"):
        fitted.score_groups(IMAGES[:5], list("aaabb"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGES[:3], [1, 1]), {}, "one group for each of 3 images"),
        ((IMAGES[:3], [1, 1, None]), {}, "group"),
        ((IMAGES[:3], [1, 1, 1]), {"aggregate": "min"}, "is not one of"),
    ],
)
def test_wrong_groups_are_refused(fitted, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        fitted.score_groups(*arguments, **options)


def test_a_fit_without_groups_has_no_parts_to_compare_with():
    with pytest.raises(ValueError, match="have no groups"):
        make().fit(IMAGES).score_groups(IMAGES[:3], [1, 1, 1])
