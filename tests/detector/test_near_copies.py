"""Near copies: told where held-out images have a twin among those learned from, and only there."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import binomtest
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.detector._near_copies import find_near_copies
from skanomaly_vit.exceptions import CalibrationWarning
from tests.helpers.images import blobs

N_SCENES, N_FRAMES = 24, 6
SCENES = np.repeat(np.arange(N_SCENES), N_FRAMES)


def scenes(rng, n):
    return np.kron(rng.integers(40, 216, (n, 4, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def frames(rng, n_scenes=N_SCENES):
    """Frames of videos: one scene each, with the noise of a camera."""
    still = np.repeat(scenes(rng, n_scenes), N_FRAMES, axis=0)
    return (still + rng.normal(0, 2, still.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    return TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0,
        contamination=0.2,
    )  # fmt: skip


# The statistic


def normal(rng, n):
    return rng.normal(size=(n, 12))


def plane(rng, n):
    return rng.normal(size=(n, 2)) @ np.random.default_rng(9).normal(size=(2, 30))


def classes(rng, n):
    centres = np.random.default_rng(9).normal(0, 4, (5, 12))
    return centres[rng.integers(0, 3, n)] + normal(rng, n)


@pytest.mark.parametrize(
    ("draw", "n", "rate"),
    [*((draw, n, 0.015) for draw in (normal, plane) for n in (20, 50, 400)),
     (classes, 50, 0.07), (classes, 400, 0.015)],
)  # fmt: skip
def test_independent_images_have_a_twin_in_one_case_of_a_hundred(draw, n, rate):
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [find_near_copies(draw(rng, 20), Rows.of(draw(rng, n))) for _ in "0" * 50]
    )
    assert binomtest(int(found.sum()), len(found), rate, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("n_frames", [2, 5, 12])
def test_copies_with_noise_are_twins(n_frames):
    rng = np.random.default_rng(0)
    scenes = normal(rng, 60)
    held_out = scenes[:40] + 0.05 * normal(rng, 40)
    learned = np.repeat(scenes, n_frames, axis=0)
    learned = learned + 0.05 * normal(rng, len(learned))
    assert find_near_copies(held_out, Rows.of(learned)).mean() > 0.9
    assert find_near_copies(normal(rng, 40), Rows.of(learned)).mean() < 0.1  # of another scene


def test_equal_features_are_twins_and_equal_distances_are_none():
    rng = np.random.default_rng(0)
    learned = normal(rng, 50)
    assert find_near_copies(learned[:9], Rows.of(np.repeat(learned, 2, axis=0))).all()
    assert not find_near_copies(np.zeros((5, 50)), Rows.of(np.eye(50))).any()
    assert not find_near_copies(learned[:9], Rows.of(learned[:7])).any()
    assert find_near_copies(learned[:0], Rows.of(learned)).shape == (0,)


# What users see


def test_fit_tells_of_frames_of_a_video_and_groups_settle_it(detector):
    X = frames(np.random.default_rng(0))
    message = r"of 29 held-out images .* frames of one video .* Fit with groups="
    with pytest.warns(CalibrationWarning, match=message) as caught:
        clone(detector).fit(X)
    assert [each.filename for each in caught] == [__file__]
    told = str(caught[0].message)
    with pytest.warns(CalibrationWarning, match=message) as caught:
        clone(detector).set_params(n_jobs=2).fit(X)
    assert str(caught[0].message) == told
    with warnings.catch_warnings(action="error"):
        clone(detector).fit(X, groups=SCENES)


@pytest.mark.parametrize("draw", [scenes, blobs])
@pytest.mark.parametrize("n", [30, 150])
def test_independent_images_and_copies_of_them_are_not_told(detector, draw, n):
    X = draw(np.random.default_rng(0), n)
    with warnings.catch_warnings(action="error"):
        clone(detector).fit(X)
        clone(detector).fit(np.concatenate([X, X, X]))


def test_the_statistic_is_the_same_for_every_order_of_learned_images():
    rng = np.random.default_rng(0)
    held_out, learned = normal(rng, 50), normal(rng, 3000)
    learned[:20] = held_out[:20] + 0.05 * normal(rng, 20)
    found = find_near_copies(held_out, Rows.of(learned))
    assert_array_equal(find_near_copies(held_out, Rows.of(learned[::-1])), found)
    assert found[:20].mean() > 0.9


def test_copies_do_not_hide_near_copies(detector):
    X = frames(np.random.default_rng(0))
    with pytest.warns(CalibrationWarning, match="near copies"):
        clone(detector).fit(np.concatenate([X, X]))


def test_partial_fit_tells_as_well(detector):
    rng = np.random.default_rng(0)
    X, others = frames(rng, 80), scenes(rng, 80)
    one_a_scene, more = X[::N_FRAMES], np.delete(X, np.s_[::N_FRAMES], axis=0)
    with warnings.catch_warnings(action="error"):
        fitted = clone(detector).fit(one_a_scene).partial_fit(others)
    with pytest.warns(CalibrationWarning, match="near copies") as caught:
        fitted.partial_fit(more)
    assert [each.filename for each in caught] == [__file__]


def test_calibrate_tells_of_frames_of_learned_scenes(detector):
    rng = np.random.default_rng(0)
    X = frames(rng)
    with pytest.warns(CalibrationWarning, match="near copies"):
        fitted = clone(detector).fit(np.delete(X, np.s_[::N_FRAMES], axis=0))
    with pytest.warns(CalibrationWarning, match="of 24 held-out .* near copies") as caught:
        fitted.calibrate(X[::N_FRAMES])
    assert [each.filename for each in caught] == [__file__]


def test_calibrate_with_other_scenes_than_learned_is_not_told(detector):
    rng = np.random.default_rng(0)
    with pytest.warns(CalibrationWarning, match="near copies"):
        fitted = clone(detector).fit(frames(rng))
    with warnings.catch_warnings(action="error"):
        fitted.calibrate(scenes(rng, 60), replace=True)
