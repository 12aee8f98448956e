"""Anomaly maps: where a detector says that images are abnormal, and how well."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blobs
from PIL import Image
from sklearn.metrics import auc, roc_auc_score, roc_curve

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone.patches import N_PATCHES
from skanomaly_vit.datasets import paste_defects
from skanomaly_vit.distillation._ridge import RidgeModule
from skanomaly_vit.evaluation import per_region_overlap, pixel_auroc

METHODS = ["discrepancy", "features", "both"]


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """Stripes of a common kind, (40, 84, 84, 3)."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (40, 1, 1))
    stripes = 128 + 40 * np.sin(np.arange(84)[:, None] / 4 + phase) + rng.normal(0, 4, (40, 84, 84))
    return np.repeat(stripes[..., None], 3, axis=3).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector(textured) -> TransformalyDetector:
    """On the embedded backbone, 6 x 6 patches."""
    return TransformalyDetector(image_size=84, n_blocks=6, random_state=0).fit(textured[:30])


@pytest.fixture(scope="module")
def defective(textured):
    return paste_defects(textured[30:], random_state=0)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_higher_on_defects(detector, defective, method):
    maps = detector.anomaly_map(defective.images, method)
    assert maps.shape == (10, 84, 84)
    assert maps.dtype == np.float32
    assert pixel_auroc(defective.masks, maps) > 0.9
    assert per_region_overlap(defective.masks, maps) > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_normal_images_are_on_the_scale_of_normal_patches(detector, textured, method):
    maps = detector.anomaly_map(textured[30:], method)
    assert abs(maps.mean()) < 0.6
    assert 0.4 < maps.std() < 1.6


def test_the_default_shows_features_unless_only_errors_score(detector, defective, textured):
    for spaces, method in [("both", "features"), ("discrepancy",) * 2]:
        fitted = TransformalyDetector(
            image_size=56, n_blocks=2, feature_spaces=spaces, random_state=0
        ).fit(textured[:10])
        expected = fitted.anomaly_map(defective.images, method)
        np.testing.assert_array_equal(fitted.anomaly_map(defective.images), expected)


def test_a_map_comes_from_the_pass_that_gives_the_score(detector, defective, embedded):
    scores, maps = detector.score_samples(defective.images, return_map=True)
    assert sum(embedded) == len(defective.images)
    np.testing.assert_array_equal(scores, detector.score_samples(defective.images))
    np.testing.assert_array_equal(maps, detector.anomaly_map(defective.images))


@pytest.mark.parametrize("method", METHODS)
def test_a_map_alone_takes_no_more_work_than_it_needs(detector, defective, method, monkeypatch):
    expected = detector.anomaly_map(defective.images, method)
    without_densities = copy.copy(detector)
    without_densities.density_ = dict.fromkeys(detector.density_)
    n_imitated = []

    def counting(self, tokens, *args, forward=RidgeModule.forward, **kwargs):
        n_imitated.append(len(tokens))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(RidgeModule, "forward", counting)
    maps = without_densities.anomaly_map(defective.images, method)
    np.testing.assert_array_equal(maps, expected)
    assert sum(n_imitated) == (0 if method == "features" else 6 * len(defective.images))


def test_a_map_does_not_hang_on_other_images(detector, defective):
    maps = detector.anomaly_map(defective.images)
    for i in (0, 7):
        np.testing.assert_array_equal(detector.anomaly_map([defective.images[i]])[0], maps[i])
    small_batches = copy.copy(detector).set_params(batch_size=3)
    np.testing.assert_array_equal(small_batches.anomaly_map(defective.images), maps)


def test_a_map_is_the_right_way_round(detector, textured):
    image = textured[35].copy()
    image[5:25, 50:80] = 255  # above, on the right
    (map_,) = detector.anomaly_map([image])
    assert map_[:42, 42:].mean() > 1 + max(
        map_[:42, :42].mean(), map_[42:, :42].mean(), map_[42:, 42:].mean()
    )


def test_maps_have_the_sizes_of_their_images(detector, textured, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("L", (20, 70)).save(tmp_path / "grey.png")
    Image.new("RGB", (33, 44)).save(tmp_path / "upright.jpg")
    paths = [tmp_path / name for name in ("turned.jpg", "grey.png", "upright.jpg")]
    maps = detector.anomaly_map(paths)
    assert isinstance(maps, list)
    assert [values.shape for values in maps] == [(40, 30), (70, 20), (44, 33)]
    np.testing.assert_array_equal(detector.anomaly_map([paths[1]])[0], maps[1])


def test_maps_survive_a_pickle_to_the_bit(detector, defective):
    again = pickle.loads(pickle.dumps(detector))
    expected = detector.anomaly_map(defective.images)
    np.testing.assert_array_equal(again.anomaly_map(defective.images), expected)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_same_with_and_without_memory(textured, defective, tmp_path, method):
    def fit(memory):
        return TransformalyDetector(image_size=56, n_blocks=2, random_state=0, memory=memory).fit(
            textured[:12]
        )

    expected = fit(None).anomaly_map(defective.images, method)
    for _ in range(2):
        maps = fit(tmp_path / "cache").anomaly_map(defective.images, method)
        np.testing.assert_array_equal(maps, expected)


def test_a_second_fit_with_memory_passes_no_image_through_the_backbone(
    textured, tmp_path, embedded
):
    make = TransformalyDetector(image_size=56, n_blocks=2, random_state=0, memory=tmp_path / "c")
    make.fit(textured[:12])
    embedded.clear()
    make.fit(textured[:12])
    assert sum(embedded) == 0


def test_a_fit_passes_each_image_through_the_backbone_once(textured, embedded):
    TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(textured[:12])
    probe = 1  # of the arguments of blocks
    assert sum(embedded) <= 12 + 2 * probe


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_backbones_gives_maps(name, images):
    detector = TransformalyDetector(backbone=family(name), n_blocks=2, random_state=0).fit(images)
    maps = detector.anomaly_map(images[:3])
    assert maps.shape == (3, 32, 32)
    assert np.isfinite(maps).all()


def test_images_that_are_not_square_give_maps(images):
    detector = TransformalyDetector(
        image_size=(28, 84), n_blocks=1, feature_spaces="both", random_state=0
    ).fit(images[:6])
    wide = images[6].copy()
    wide[:, 24:] = 255 - wide[:, 24:]
    (map_,) = detector.anomaly_map([wide])
    assert map_[:, 26:].mean() > map_[:, :16].mean() + 1


def test_more_patches_than_the_sample_holds_are_drawn_from(images):
    many = np.tile(images, (13, 1, 1, 1))
    assert len(many) * 16 > N_PATCHES
    detector = TransformalyDetector(image_size=56, n_blocks=1, random_state=0).fit(many)
    assert np.isfinite(detector.anomaly_map(images[:2])).all()


def test_images_of_one_colour_have_finite_maps():
    shades = np.array([100, 101, 102, 110, 120, 90], np.uint8)[:, None, None]
    flat = np.broadcast_to(shades, (6, 32, 32))
    detector = TransformalyDetector(image_size=56, n_blocks=1, random_state=0).fit(flat)
    assert np.isfinite(detector.anomaly_map(255 - flat)).all()


class TestRefused:
    def test_an_unknown_method(self, fitted, images):
        with pytest.raises(ValueError, match="method='heat' is not one of"):
            fitted.anomaly_map(images, "heat")

    @pytest.mark.parametrize("method", ["discrepancy", "both"])
    def test_a_map_of_students_that_were_not_trained(self, make_detector, images, method):
        detector = make_detector(feature_spaces="pretrained").fit(images)
        with pytest.raises(ValueError, match="needs students"):
            detector.anomaly_map(images, method)

    def test_a_backbone_that_does_not_tell_its_patches(self, make_detector, tiny, images):
        network = copy.deepcopy(tiny)
        del network.patch_embed.patch_size
        detector = make_detector(backbone=network).fit(images)
        assert np.isfinite(detector.score_samples(images)).all()
        with pytest.raises(ValueError, match="does not tell the size of its patches"):
            detector.anomaly_map(images)

    def test_an_unreadable_image(self, detector, tmp_path):
        (tmp_path / "broken.png").write_text("no image")
        with pytest.raises(ValueError, match=r"sample 0 \(.*broken.png.*cannot be decoded"):
            detector.anomaly_map([tmp_path / "broken.png"])


class TestPixelAuroc:
    def test_is_that_of_all_pixels_together(self, rng):
        masks, maps = rng.uniform(size=(2, 3, 5, 4))
        expected = roc_auc_score((masks > 0.7).ravel(), maps.ravel())
        assert pixel_auroc(masks > 0.7, maps) == pytest.approx(expected)

    def test_takes_masks_as_files_and_none_for_none(self, tmp_path, rng):
        mask = np.zeros((6, 5), np.uint8)
        mask[2:4, 1:3] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        maps = rng.normal(size=(2, 6, 5))
        expected = pixel_auroc([mask, np.zeros((6, 5))], maps)
        assert pixel_auroc([tmp_path / "mask.png", None], maps) == expected
        assert pixel_auroc([Image.fromarray(mask), None], maps) == expected

    @pytest.mark.parametrize(
        ("masks", "maps", "message"),
        [
            ([np.ones((2, 2))], [np.ones((2, 2))], "all 4 pixels are defective"),
            ([None], [np.ones((2, 2))], "all 4 pixels are normal"),
            ([np.ones((2, 3))], [np.ones((2, 2))], r"mask 0 has shape \(2, 3\) and its map"),
            ([np.ones(4)], [np.ones(4)], r"\(height, width\)"),
            ([np.eye(2)], [np.array([[1, np.nan], [0, 0]])], "map 0 holds values"),
            ([np.eye(2)], [], "1 masks for 0 maps"),
            ([], [], "no maps"),
        ],
    )
    def test_refuses(self, masks, maps, message):
        for measure in (pixel_auroc, per_region_overlap):
            with pytest.raises(ValueError, match=message):
                measure(masks, maps)


def overlap_by_thresholds(mask: np.ndarray, map_: np.ndarray, max_fpr: float) -> float:
    """The area under the curve of one region, from the points of the curve."""
    fpr, overlap, _ = roc_curve(mask.ravel(), map_.ravel(), drop_intermediate=False)
    stop = np.searchsorted(fpr, max_fpr, side="right")
    last = np.interp(max_fpr, fpr[stop - 1 : stop + 1], overlap[stop - 1 : stop + 1])
    return auc([*fpr[:stop], max_fpr], [*overlap[:stop], last]) / max_fpr


class TestPerRegionOverlap:
    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1), n_values=st.integers(1, 40), max_fpr=st.floats(0.05, 1.0)
    )
    def test_is_the_area_under_the_curve_of_one_region(self, seed, n_values, max_fpr):
        rng = np.random.default_rng(seed)
        mask = np.zeros((6, 7), bool)
        mask[2:5, 1:4] = True
        map_ = rng.integers(0, n_values, (6, 7)) + 2.0 * mask * rng.uniform()
        expected = overlap_by_thresholds(mask, map_, max_fpr)
        assert per_region_overlap([mask], [map_], max_fpr=max_fpr) == pytest.approx(expected)

    def test_counts_small_regions_as_much_as_large_ones(self):
        mask = np.zeros((10, 10), bool)
        mask[:4, :4] = mask[9, 9] = True
        map_ = np.where(mask, 1.0, 0.0)
        map_[9, 9] = -1  # the small one is missed
        assert per_region_overlap([mask], [map_]) == pytest.approx(0.5)
        assert pixel_auroc([mask], [map_]) > 0.9

    def test_pixels_that_touch_by_corners_hang_together(self):
        found = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
        assert per_region_overlap([np.diag([1, 1, 0])], [found]) == pytest.approx(0.5)

    def test_is_half_of_max_fpr_by_chance(self):
        mask = np.zeros((20, 20), bool)
        mask[5:9, 5:9] = True
        assert per_region_overlap([mask], [np.zeros((20, 20))]) == pytest.approx(0.15)

    @pytest.mark.parametrize("max_fpr", [0, -0.1, 1.1])
    def test_refuses_a_rate_out_of_range(self, max_fpr):
        with pytest.raises(ValueError, match="max_fpr"):
            per_region_overlap([np.eye(2)], [np.eye(2)], max_fpr=max_fpr)


class TestPasteDefects:
    @pytest.mark.parametrize("kind", ["scratch", "stain", "foreign"])
    def test_changes_what_the_mask_marks_and_nothing_else(self, textured, kind):
        made = paste_defects(textured[:20], kinds=[kind], random_state=1)
        assert (made.kinds == kind).all()
        for image, altered, mask in zip(textured, made.images, made.masks, strict=False):
            np.testing.assert_array_equal(altered[~mask], image[~mask])
            assert (altered[mask] != image[mask]).any(axis=-1).mean() > 0.5
            assert 0 < mask.mean() < 0.1

    def test_is_the_same_for_the_same_seed(self, textured):
        first, same, other = (paste_defects(textured[:5], random_state=i) for i in (3, 3, 4))
        np.testing.assert_array_equal(first.images, same.images)
        assert not np.array_equal(first.masks, other.masks)

    @pytest.mark.parametrize("kind", ["stain", "foreign"])
    def test_pastes_blots_of_the_size_that_is_asked_for(self, kind):
        images = np.random.default_rng(0).integers(0, 256, (20, 200, 300), dtype=np.uint8)
        for size in (0.03, 0.2):
            made = paste_defects(images, kinds=[kind], size=size, random_state=1)
            diameters = 2 * np.sqrt(np.sum(made.masks, axis=(1, 2)) / np.pi)
            assert np.mean(diameters) == pytest.approx(size * 200, rel=0.1)
            np.testing.assert_allclose(diameters, size * 200, rtol=0.3, atol=1)

    def test_pastes_scratches_of_the_size_that_is_asked_for(self):
        images = np.zeros((20, 200, 300), np.uint8)
        for size in (0.03, 0.4):
            made = paste_defects(images, kinds=["scratch"], size=size, random_state=1)
            for mask in made.masks:
                rows, columns = np.nonzero(mask)
                extent = max(np.ptp(rows), np.ptp(columns)) + 1
                assert extent == pytest.approx(size * 200, abs=2 + 0.1 * size * 200)
                assert mask.sum() < 0.5 * extent**2

    @pytest.mark.parametrize("size", [0, -0.1, 1.5, np.nan, True, "small"])
    def test_refuses_a_size_out_of_range(self, textured, size):
        with pytest.raises(ValueError, match="size="):
            paste_defects(textured[:2], size=size)

    def test_takes_images_of_any_kind_and_size(self, tmp_path):
        Image.new("L", (9, 30)).save(tmp_path / "grey.png")
        images = [tmp_path / "grey.png", np.zeros((16, 16, 3)), np.full((1, 1), 40_000, np.uint16)]
        for seed in range(10):
            made = paste_defects(images, random_state=seed)
            assert [image.shape for image in made.images] == [(30, 9, 3), (16, 16, 3), (1, 1, 3)]
            assert all(mask.any() for mask in made.masks)
            tiny = paste_defects(images, size=0.01, random_state=seed)
            assert all(mask.any() for mask in tiny.masks)

    @pytest.mark.parametrize("kinds", [["dent"], [], "stain"])
    def test_refuses_kinds_that_are_not_known(self, textured, kinds):
        with pytest.raises(ValueError, match="kinds="):
            paste_defects(textured[:2], kinds=kinds)


def test_maps_do_not_hang_on_torchs_grad_mode(detector, defective):
    expected = detector.anomaly_map(defective.images)
    with torch.inference_mode():
        np.testing.assert_array_equal(detector.anomaly_map(defective.images), expected)


def test_normal_patches_differ_from_noise_on_a_tiny_network(fitted, odd_images):
    normal = blobs(np.random.default_rng(5), 6)
    assert fitted.anomaly_map(odd_images).mean() > fitted.anomaly_map(normal).mean() + 1
