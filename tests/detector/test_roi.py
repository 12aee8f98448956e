"""Regions of interest of the detector: pixels outside change nothing, in any feature space."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from images import blobs
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

from skanomaly_vit import (
    BlockDistillation,
    CompactFeatures,
    MaskedImages,
    MeanShiftedFeatures,
    TransformalyDetector,
    ViTFeatures,
    read_roi,
)
from skanomaly_vit.evaluation import pixel_auroc
from skanomaly_vit.exceptions import UnreadableImageError, UnreadableImageWarning

IMAGES = blobs(np.random.default_rng(0), 24)
ROI = np.zeros((32, 32), bool)
ROI[6:20, 4:22] = True
NOISE = np.random.default_rng(1)


def make(**parameters):
    options = {"image_size": 56, "n_blocks": 2, "contamination": 0.2, "random_state": 0}
    return TransformalyDetector(**options | parameters)


def outside_changed(images=IMAGES):
    changed = images.copy()
    changed[:, ~ROI] = NOISE.integers(0, 256, changed[:, ~ROI].shape)
    return changed


@pytest.fixture(scope="module")
def fitted():
    return make(roi=ROI).fit(IMAGES)


RECIPES = [
    {},
    {"recipe": "paper", "student": "ridge"},
    {"views": ("mean_patch", "max_patch:-2"), "pooling": "mean"},
    {"pooling": 0.3, "feature_spaces": "discrepancy"},
    {"activation_cache": 0, "keep_aspect": True},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_pixels_outside_change_no_score_and_no_map(recipe):
    detector = make(roi=ROI, **recipe).fit(IMAGES)
    scores, maps = detector.score_samples(IMAGES[:6], return_map=True)
    changed = detector.score_samples(outside_changed(IMAGES[:6]), return_map=True)
    np.testing.assert_array_equal(changed[0], scores)
    np.testing.assert_array_equal(changed[1], maps)


@pytest.mark.parametrize("recipe", RECIPES)
def test_pixels_outside_change_no_model(recipe):
    scores = make(roi=ROI, **recipe).fit(IMAGES).score_samples(IMAGES[:6])
    again = make(roi=ROI, **recipe).fit(outside_changed()).score_samples(IMAGES[:6])
    np.testing.assert_array_equal(again, scores)


def test_a_defect_inside_is_found_and_one_outside_is_not(fitted):
    odd = IMAGES[:2].copy()
    odd[0, 10:16, 8:16] = 255
    odd[1, 24:30, 24:30] = 255
    before, after = fitted.score_samples(IMAGES[:2]), fitted.score_samples(odd)
    assert after[0] < before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize("method", ["features", "discrepancy", "both"])
def test_maps_are_zero_outside_and_point_at_the_defect_inside(fitted, method):
    odd = IMAGES[:1].copy()
    odd[0, 10:16, 8:16] = 255
    (plane,) = fitted.anomaly_map(odd, method=method)
    assert not plane[~ROI].any()
    assert plane[ROI].any()
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 10:16, 8:16] = True
    assert pixel_auroc(mask, plane[None]) > 0.8


def test_a_region_scales_with_images(fitted):
    large = IMAGES[:3].repeat(2, axis=1).repeat(2, axis=2)
    changed = large.copy()
    changed[:, ~ROI.repeat(2, axis=0).repeat(2, axis=1)] = 7
    np.testing.assert_array_equal(fitted.score_samples(changed), fitted.score_samples(large))


def test_masked_images_score_as_with_a_common_region(fitted):
    detector = make().fit(MaskedImages(IMAGES, [ROI] * 24))
    scores = detector.score_samples(MaskedImages(IMAGES[:5], [ROI] * 5))
    np.testing.assert_array_equal(scores, fitted.score_samples(IMAGES[:5]))
    assert detector.roi_ is None


def test_each_image_has_its_own_region():
    detector = make().fit(IMAGES)
    masked = MaskedImages(IMAGES[:3], [ROI, None, ~ROI])
    scores = detector.score_samples(masked)
    assert scores[1] == detector.score_samples(IMAGES[1:2])[0]
    for i, region in enumerate([ROI, None, ~ROI]):
        alone = detector.score_samples(MaskedImages(IMAGES[i : i + 1], [region]))
        assert alone[0] == scores[i]
    assert len(set(detector.score_samples(MaskedImages(IMAGES[[0, 0]], [ROI, ~ROI])))) == 2


def test_masked_images_cross_validate():
    masked = MaskedImages(IMAGES, [ROI] * 24)
    scores = cross_val_predict(make(), masked, cv=2, method="decision_function")
    common = cross_val_predict(make(roi=ROI), IMAGES, cv=2, method="decision_function")
    np.testing.assert_array_equal(scores, common)


def test_own_and_common_region_both_count(fitted):
    half = np.zeros((32, 32), bool)
    half[:, :12] = True
    odd = IMAGES[:1].copy()
    odd[0, 8:18, 14:20] = 255  # inside the common region, outside the own one
    masked = [MaskedImages(images, [half]) for images in (IMAGES[:1], odd)]
    assert fitted.score_samples(masked[0]) == fitted.score_samples(masked[1])
    assert fitted.score_samples(IMAGES[:1]) != fitted.score_samples(odd)


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_model_file_keeps_the_region(keep_aspect, as_file, tmp_path):
    path = tmp_path / "roi.png"
    Image.fromarray(ROI).save(path)
    detector = make(roi=str(path) if as_file else ROI, keep_aspect=keep_aspect).fit(IMAGES)
    detector.save(tmp_path / "m.skanomaly")
    path.unlink()
    loaded = TransformalyDetector.load(tmp_path / "m.skanomaly")
    np.testing.assert_array_equal(loaded.roi_, ROI)
    for other in (loaded, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(
            other.score_samples(outside_changed(IMAGES[:4])), detector.score_samples(IMAGES[:4])
        )
    assert loaded.get_params()["keep_aspect"] == keep_aspect


def test_false_alarms_keep_their_rate_with_a_region():
    # The seeds are fixed, and so is the share; the rate that was asked for is 0.2.
    shares = []
    for seed in range(6):
        images = blobs(np.random.default_rng(100 + seed), 80)
        detector = make(roi=ROI, random_state=seed).fit(images[:40])
        shares.append((detector.predict(images[40:]) == -1).mean())
    assert np.mean(shares) < 0.32


def test_a_cache_tells_regions_apart(tmp_path):
    plain = make(memory=str(tmp_path)).fit(IMAGES).score_samples(IMAGES[:4])
    inside = make(memory=str(tmp_path), roi=ROI).fit(IMAGES).score_samples(IMAGES[:4])
    again = make(memory=str(tmp_path), roi=ROI).fit(IMAGES).score_samples(IMAGES[:4])
    np.testing.assert_array_equal(again, inside)
    np.testing.assert_array_equal(inside, make(roi=ROI).fit(IMAGES).score_samples(IMAGES[:4]))
    assert (plain != inside).all()


def test_calibrate_depends_on_no_pixel_outside():
    images = blobs(np.random.default_rng(5), 40)
    detector = make(roi=ROI).fit(IMAGES)
    offsets = {
        detector.calibrate(X, replace=True).offset_ for X in (images, outside_changed(images))
    }
    assert len(offsets) == 1


def test_partial_fit_learns_inside_the_region():
    more = blobs(np.random.default_rng(6), 16)
    detector = make(roi=ROI).fit(IMAGES).partial_fit(more)
    scores = detector.score_samples(IMAGES[:4])
    np.testing.assert_array_equal(detector.score_samples(outside_changed(IMAGES[:4])), scores)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.zeros((32, 32)), "leaves none that counts"),
        (
            np.ones((16, 32)),
            r"sample 0: 32 x 32 pixels have .* region of interest, 32 x 16",
        ),
        ("no/such/roi.png", "no/such/roi.png"),
        (np.ones((32, 32, 2)), "shape"),
    ],
)
def test_a_wrong_region_is_refused_before_work(roi, message, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work began")

    monkeypatch.setattr(TransformalyDetector, "_fit", fail)
    with pytest.raises(ValueError, match=message):
        make(roi=roi).fit(IMAGES)


@pytest.mark.parametrize("tiles", [None, (1, 2)])
def test_an_image_that_the_region_does_not_fit_has_no_score(tiles):
    detector = make(roi=ROI, tiles=tiles, on_error="nan").fit(IMAGES)
    images = [IMAGES[0], IMAGES[1][:20], IMAGES[2]]
    with pytest.warns(UnreadableImageWarning, match=r"1 of 3 .*\n.*another ratio of sides"):
        scores, maps = detector.score_samples(images, return_map=True)
    np.testing.assert_array_equal(scores[[0, 2]], detector.score_samples(IMAGES[[0, 2]]))
    assert np.isnan(scores[1])
    assert [plane.size > 0 for plane in maps] == [True, False, True]
    found = list(detector.iter_scores(images))
    np.testing.assert_array_equal([each.score for each in found], scores)
    assert "region of interest, 32 x 32" in found[1].cause


def test_all_images_that_the_region_does_not_fit_are_named(fitted):
    images = [IMAGES[0], IMAGES[1][:20], IMAGES[2], IMAGES[3][:, :20]]
    with pytest.raises(UnreadableImageError, match="sample 1: 32 x 20 pixels") as caught:
        fitted.score_samples(images)
    assert [image.index for image in caught.value.images] == [1, 3]


def test_images_without_a_common_pixel_name_the_sample(fitted):
    with pytest.raises(ValueError, match="sample 1: its region of interest leaves no pixel"):
        fitted.score_samples(MaskedImages(IMAGES[:2], [None, ~ROI]))


def test_a_file_of_polygons_is_a_region(tmp_path):
    path = tmp_path / "part.json"
    corners = [[4, 6], [21, 6], [21, 19], [4, 19]]
    shapes = [{"label": "part", "shape_type": "polygon", "points": corners}]
    path.write_text(json.dumps({"imageHeight": 32, "imageWidth": 32, "shapes": shapes}))
    np.testing.assert_array_equal(read_roi(path), ROI)
    np.testing.assert_array_equal(make(roi=path).fit(IMAGES).roi_, ROI)


@pytest.mark.parametrize(
    "estimator",
    [
        ViTFeatures(image_size=28, views=("pooled", "max_patch", "mean_patch")),
        BlockDistillation(image_size=28, n_blocks=1, random_state=0),
        CompactFeatures(image_size=28, max_epochs=1, random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_transformers_take_masked_images(estimator):
    masked = [MaskedImages(X, [ROI] * 24) for X in (IMAGES, outside_changed())]
    features = [clone(estimator).fit(X).transform(X) for X in masked]
    np.testing.assert_array_equal(*features)
    assert (features[0] != clone(estimator).fit(IMAGES).transform(IMAGES)).any()


def test_who_looks_at_whole_images_refuses_masked_ones():
    with pytest.raises(ValueError, match="takes no MaskedImages"):
        MeanShiftedFeatures(image_size=28).fit(MaskedImages(IMAGES, [ROI] * 24))
