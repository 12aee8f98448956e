"""Densities of tiles by position: what is normal at one place is none at another."""

from __future__ import annotations

import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
from images import blobs
from PIL import Image

from skanomaly_vit import MaskedImages, TransformalyDetector
from skanomaly_vit._images import source
from skanomaly_vit.exceptions import ModelFileError, UnreadableImageWarning
from skanomaly_vit.onnx import export_onnx
from skanomaly_vit.persistence._container import read, write


def panels(n, seed):
    """Pictures of 64 x 96 pixels: 2 x 3 blobs on gray, dark ones on the left, others bright."""
    parts = blobs(np.random.default_rng(seed), 6 * n).reshape(n, 2, 3, 32, 32, 3) // 3
    parts[:, :, 1:] += 150
    for rim in (slice(0, 6), slice(26, 32)):  # wider than the overlap of tiles
        parts[:, :, :, rim] = parts[:, :, :, :, rim] = 128
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(n, 64, 96, 3)


IMAGES = panels(24, 0)
NEW = panels(6, 1)
#: In three of them, the tiles of the left are those of the right.
SWAPPED = NEW.copy()
SWAPPED[3:, :, :35] = NEW[3:, :, 61:]

#: The region of the first column of tiles alone.
LEFT = np.arange(96)[np.newaxis].repeat(64, axis=0) < 30


def make(**parameters):
    options = {"image_size": 28, "n_blocks": 2, "contamination": 0.2, "random_state": 0}
    return TransformalyDetector(
        **options | {"tiles": (2, 3), "tile_density": "position"} | parameters
    )


@pytest.fixture(scope="module")
def fitted():
    return make().fit(IMAGES)


def test_normal_at_another_place_is_abnormal_here(fitted):
    shared = make(tile_density="shared").fit(IMAGES)
    drops = [each.score_samples(NEW) - each.score_samples(SWAPPED) for each in (fitted, shared)]
    assert drops[0][3:].min() > 10
    assert drops[1].max() == 0  # a tile that the image has already
    assert (fitted.predict(SWAPPED)[3:] == -1).all()


def test_each_place_has_a_density_of_its_own_tiles(fitted):
    assert fitted.tile_grid_ == (2, 3)
    other = IMAGES.copy()
    other[:, 32:, 64:] = 255 - other[:, 32:, 64:]  # overlaps the places 1, 2 and 4
    fits = [make(feature_spaces="pretrained").fit(images) for images in (IMAGES, other)]
    for view in fits[0].density_:
        here, there = (fit.density_[view].densities for fit in fits)
        rows = np.zeros((1, here[0].n_features_in_))
        assert list(here) == list(range(6))
        same = [here[i].score_samples(rows) == there[i].score_samples(rows) for i in here]
        assert [bool(each[0]) for each in same] == [True, False, False, True, False, False]


def test_places_are_compared_in_deviations_of_each(fitted):
    held_out = fitted.score_samples(IMAGES[fitted.validation_indices_])
    np.testing.assert_array_equal(fitted.calibration_scores_, held_out)
    scales = np.array(list(fitted.density_["pooled"].scales.values()))
    assert len(np.unique(scales[:, 0])) == 6
    product = make(fusion="product").fit(IMAGES)
    assert set(product.density_["pooled"].scales.values()) == {(0.0, 1.0)}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"tiles": "auto", "calibration": "cross"},
        {"recipe": "paper", "student": "ridge", "keep_aspect": True},
        {"validation_fraction": 0, "feature_spaces": "discrepancy", "density": "gaussian"},
        {"roi": np.arange(96)[np.newaxis].repeat(64, axis=0) < 40},  # two columns of tiles
    ],
)
def test_scores_are_the_same_by_every_way(parameters, tmp_path):
    detector = make(**parameters).fit(IMAGES)
    scores = detector.score_samples(SWAPPED)
    assert np.isfinite(scores).all()
    chunks = detector.iter_scores(iter(SWAPPED), chunk_size=4)
    assert [image.score for image in chunks] == list(scores)
    detector.save(tmp_path / "m.skanomaly")
    loaded = TransformalyDetector.load(tmp_path / "m.skanomaly")
    assert (loaded.tile_density, loaded.tile_grid_) == ("position", detector.tile_grid_)
    assert loaded.verify()["same"]
    for other in (loaded, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(other.score_samples(SWAPPED), scores)
    with joblib.parallel_config("threading", n_jobs=2):
        np.testing.assert_array_equal(detector.score_samples(SWAPPED), scores)
    spaces = detector.score_spaces(SWAPPED)
    np.testing.assert_allclose(np.sum(list(spaces.values()), axis=0), scores)


def test_an_unreadable_image_does_not_move_the_places_of_others(fitted, tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, image in zip(paths, SWAPPED, strict=True):
        Image.fromarray(image).save(path)
    decode = source.decode_image

    def losing(item, max_pixels):  # a file that goes away once its size is known
        if isinstance(item, str) and item == paths[1]:
            Path(item).unlink(missing_ok=True)
        return decode(item, max_pixels)

    monkeypatch.setattr(source, "decode_image", losing)
    expected = fitted.score_samples(SWAPPED)
    fitted.set_params(on_error="nan")
    regions = [None, LEFT, *[None] * 4]  # it would have other tiles than the others
    try:
        with pytest.warns(UnreadableImageWarning, match="1 of 6"):
            scores = fitted.score_samples(MaskedImages(paths, regions))
    finally:
        fitted.set_params(on_error="raise")
    assert np.isnan(scores[1])
    np.testing.assert_array_equal(np.delete(scores, 1), np.delete(expected, 1))


def test_calibrate_scores_each_tile_at_its_place():
    detector = make().fit(IMAGES)
    more = panels(10, 3)
    detector.calibrate(more)
    np.testing.assert_array_equal(detector.calibration_scores_[5:], detector.score_samples(more))


def test_maps_do_not_depend_on_it(fitted):
    shared = make(tile_density="shared").fit(IMAGES)
    np.testing.assert_array_equal(fitted.anomaly_map(SWAPPED), shared.anomaly_map(SWAPPED))


def test_it_needs_tiles():
    with pytest.raises(ValueError, match=r"tile_density='position' is for tiles; pass tiles="):
        make(tiles=None).fit(IMAGES)


def test_images_of_another_grid_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"sample 24 has 2 x 2 tiles.*and others 2 x 3.*'shared'"):
        make(tiles=40).fit([*IMAGES, IMAGES[0][:, :70]])
    detector = make(tiles=40).fit(IMAGES)
    path = str(tmp_path / "small.png")
    Image.fromarray(IMAGES[0][:40]).save(path)
    with pytest.raises(ValueError, match=r"small\.png.* has 1 x 3 tiles.*and others 2 x 3"):
        detector.score_samples([path])


def test_a_tile_where_fit_had_none_is_refused_by_name():
    detector = make(density="gaussian").fit(MaskedImages(IMAGES, [LEFT] * 24))
    assert list(detector.density_["pooled"].densities) == [0, 3]
    with pytest.raises(ValueError, match=r"sample 1 has a tile in row 0, column 1 .*'shared'"):
        detector.score_samples(MaskedImages(NEW, [LEFT] + [None] * 5))


@pytest.mark.parametrize("calibration", ["split", "cross"])
@pytest.mark.parametrize("n_whole", [1, 2])
def test_a_place_of_few_tiles_is_refused(n_whole, calibration):
    regions = [LEFT] * (24 - n_whole) + [None] * n_whole
    detector = make(calibration=calibration, validation_fraction=0.5)
    with pytest.raises(ValueError, match=r"[01] of the images .* have a tile at place 1 "):
        detector.fit(MaskedImages(IMAGES, regions))


def test_densities_of_places_are_not_updated(fitted):
    with pytest.raises(ValueError, match="tile_density='position', and densities of places cannot"):
        fitted.partial_fit(NEW)
    with pytest.raises(ValueError, match="cannot be tuned: fit used tile_density='position'"):
        fitted.tune_fusion(NEW)


def test_onnx_files_refuse_densities_of_places(fitted, tmp_path):
    with pytest.raises(ValueError, match="does not know the place of a tile"):
        export_onnx(fitted, tmp_path / "m.onnx")


def test_the_density_of_a_place_says_that_it_cannot_be_updated(fitted):
    density = fitted.density_["discrepancy"].densities[0]
    with pytest.raises(ValueError, match="of one place of tiles, so it cannot be updated"):
        density.score_left_out(np.zeros((1, density.n_features_in_)))


def set_grid(values):
    values["tile_grid"] = [1, 3]


def set_places(values):
    values["density"]["pooled"]["places"] = [0, 1, 2, 3, 4, 4]


def set_scale(values):
    values["density"]["pooled"]["scales"][0] = [0.0, -1.0]


def drop_tiles(values):
    del values["framing"]


def drop_a_place(values):
    pooled = values["density"]["pooled"]
    del pooled["5"], pooled["places"][5], pooled["scales"][5]


@pytest.mark.parametrize("forge", [set_grid, set_places, set_scale, drop_tiles, drop_a_place])
def test_forged_places_are_refused(fitted, tmp_path, forge):
    path = tmp_path / "m.skanomaly"
    fitted.save(path)
    values, tensors, _ = read(str(path))
    forge(values["detector"])
    write(path, values, tensors)
    with pytest.raises(ModelFileError):
        TransformalyDetector.load(path)
