"""Any number of images: what is held of them, and how more are added to a fitted detector."""

from __future__ import annotations

import pickle
import tracemalloc
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
from images import blobs
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from skanomaly_vit import BlockDistillation, GaussianDensity, KNNDensity, TransformalyDetector
from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.density._statistics import SHARD, Kind, Statistics
from skanomaly_vit.density._whitening import axes_of, whiten
from skanomaly_vit.detector import _fit_summary as kept_room
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import n_images
from skanomaly_vit.exceptions import CalibrationWarning

#: The only view of most detectors here.
VIEW = "pooled"


@pytest.fixture
def make_detector(make_detector):
    """Detectors of one view, with mean errors, whose sums tell their means exactly."""
    return partial(make_detector, views=VIEW, pooling="mean")


# --- features on their way


@pytest.mark.parametrize("max_bytes", [1, 2**23])
def test_a_spool_gives_back_what_it_got_in_memory_and_from_a_file(rng, max_bytes):
    n = 2 * SHARD + 100
    features, errors = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
    chosen = rng.random(n) < 0.5
    chosen[SHARD : 2 * SHARD] = False
    with FeatureStore(max_bytes) as spool:
        for start in range(0, n, 77):
            part = slice(start, start + 77)
            spool.append({VIEW: features[part], DISCREPANCY: errors[part]})
        assert spool._columns[VIEW].file._rolled == (max_bytes == 1)
        for _ in range(2):
            parts = list(spool.embedded(chosen))
            assert len(parts) == 2
            for space, values in ((VIEW, features), (DISCREPANCY, errors)):
                found = np.concatenate([part[space] for part in parts])
                np.testing.assert_array_equal(found, values[chosen])
        rows = spool.rows(VIEW, chosen)
        assert rows.shape == (chosen.sum(), 3)
        # Two passes at once do not disturb each other.
        for one, other in zip(rows, rows, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_spool_in_a_full_folder_says_where(rng):
    with FeatureStore(1) as spool:
        spool.append({VIEW: np.ones((1, 2))})
        columns = spool._columns[VIEW]
        columns.file.close()
        columns.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(OSError, match=r"features of the images .*TMPDIR"):
            spool.append({VIEW: np.ones((9, 2))})


def test_features_that_are_not_finite_are_refused(make_detector, images, tiny):
    broken = pickle.loads(pickle.dumps(tiny))
    broken.norm.weight.data[0] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity.*check its weights"):
        make_detector(backbone=broken).fit(images)


@pytest.mark.parametrize("shape", [(200, 8), (12, 20)])
@pytest.mark.parametrize("variance", [0.3, 0.9, 0.999])
def test_whitening_of_statistics_is_that_of_rows(rng, shape, variance):
    X = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + 100
    expected = PCA(variance, whiten=True, svd_solver="full").fit(X)
    found = whiten(Statistics.of_shards(np.array_split(X, 5), Kind.COVARIANCE), variance)
    assert vars(found).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray | float | np.floating):
            np.testing.assert_allclose(
                getattr(found, name), value, rtol=1e-6, atol=1e-6, err_msg=name
            )
    np.testing.assert_allclose(found.transform(X), expected.transform(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((X - X.mean(0)) @ axes_of(found), found.transform(X), atol=1e-9)


def memory_of(work) -> int:
    """Bytes that Python objects and arrays take at most, beyond those that were there."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak


def test_memory_of_an_image_is_a_fraction_of_its_features(make_detector, images, monkeypatch):
    """4,000 images more take some 60 to 100 bytes each; features alone would be 100 more."""
    monkeypatch.setattr("skanomaly_vit.detector._feature_store.MAX_BYTES", 1)
    monkeypatch.setattr(FeatureStore.__init__, "__defaults__", (1,))
    monkeypatch.setattr(kept_room, "N_KEPT", 16)
    detector = make_detector(n_blocks=1, batch_size=512, activation_cache=0, contamination=0.2)
    detector.fit(images)  # what is made once is made

    def grown(work) -> float:
        few, many = (np.resize(images, (n, 32, 32, 3)) for n in (2000, 6000))
        return (memory_of(lambda: work(many)) - memory_of(lambda: work(few))) / 4000

    assert grown(detector.fit) < 100
    assert grown(detector.score_samples) < 90


# --- partial_fit of the detector


@pytest.fixture
def more(rng) -> np.ndarray:
    return blobs(rng, 30)


def densities_on(detector, X) -> dict:
    """Each space's density, fitted anew to the features that the detector gives images."""
    features = detector.features_.transform(X).astype(np.float64)
    errors = detector.distillation_.transform(X).astype(np.float64)
    return {VIEW: features, DISCREPANCY: errors}


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "paper", "max_epochs": 1},
        {"density": "gaussian", "pca_variance": 0.9},
        {"density": KNNDensity(n_neighbors=2)},
        {"density": KNNDensity(n_neighbors=2, max_samples=10)},
        {"density": "whitened_knn"},
        {"feature_spaces": "pretrained"},
        {"validation_fraction": 0.0},
    ],
    ids=str,
)


@OPTIONS
def test_densities_are_those_of_all_images(make_detector, images, more, odd_images, options):
    detector = make_detector(**options).fit(images)
    learned = np.delete(np.arange(20), detector.validation_indices_)
    held_out = len(detector.validation_indices_)
    detector.partial_fit(more)
    assert detector.n_samples_fit_ == 50
    is_learned = learned_of(detector, more)
    new_held_out = len(more) - sum(is_learned)
    for space, scorer in detector.density_.items():
        part = detector.features_ if space == VIEW else detector.distillation_
        known, new, odd = (
            part.transform(X).astype(np.float64) for X in (images[learned], more, odd_images)
        )
        rows = np.concatenate([known, new[is_learned]])
        if space == DISCREPANCY:  # those of the images of fit are scaled
            rows = rows_of(detector._fit_summary.learned, space)
            assert rows.shape == (len(learned) + sum(is_learned), 2)
        steps = dict(scorer.steps) if hasattr(scorer, "steps") else {"density": scorer}
        if "pca" in steps:
            pca = PCA(steps["pca"].n_components, whiten=True, svd_solver="full").fit(rows)
            rows, odd = pca.transform(rows), pca.transform(odd)
        fresh = type(steps["density"])(**steps["density"].get_params()).fit(rows)
        found = detector.score_spaces(odd_images)["pretrained" if space == VIEW else space]
        location, scale = detector.fusion_[space]
        np.testing.assert_allclose(
            found * scale + location, fresh.score_samples(odd), rtol=1e-5, atol=1e-5
        )
    if detector.validation_fraction:
        assert 0 < new_held_out < 15
        scores = len(detector.calibration_scores_)
        assert scores in (held_out + new_held_out, n_images(detector._fit_summary.held_out))
    else:
        assert new_held_out == 0
        assert detector.calibration_scores_ is None


def rows_of(sample, space) -> np.ndarray:
    return np.ascontiguousarray(sample[space].rows, dtype=np.float64)


def learned_of(detector, X) -> np.ndarray:
    """Mask of the images that the densities have learned from."""
    kept = {row.tobytes() for row in detector._fit_summary.learned[VIEW].rows}
    return np.array([row.tobytes() in kept for row in detector.features_.transform(X)])


@OPTIONS
def test_neither_order_nor_parts_matter(make_detector, images, more, odd_images, options):
    fitted = pickle.dumps(make_detector(**options).fit(images))
    detectors = []
    for parts in ([more[:13], more[13:]], [more[13:], more[:13]], [more], np.split(more, 30)):
        detector = pickle.loads(fitted)
        for part in parts:
            detector.partial_fit(part)
        detectors.append(detector)
    expected = detectors[0]
    for other in detectors[1:]:
        np.testing.assert_allclose(
            other.score_views(odd_images)[VIEW],
            expected.score_views(odd_images)[VIEW],
            rtol=1e-6,
        )
        assert other.fusion_[VIEW] == pytest.approx(expected.fusion_[VIEW], rel=1e-6)
        if other.distillation_ is None:
            assert other.offset_ == pytest.approx(expected.offset_, rel=1e-6)
        else:
            np.testing.assert_allclose(
                other.distillation_.transform(odd_images),
                expected.distillation_.transform(odd_images),
                rtol=1e-3,
            )


def test_scale_and_threshold_are_those_of_the_images_kept(make_detector, images, more):
    detector = make_detector(contamination=0.25).fit(images).partial_fit(more)
    everything = np.concatenate([images, more])
    scores = detector.score_spaces(everything)
    features = densities_on(detector, everything)[VIEW].astype(np.float32)
    kept = {row.tobytes() for row in detector._fit_summary.held_out[VIEW].rows}
    held_out = np.array([row.tobytes() in kept for row in features])
    assert len(detector.calibration_scores_) == held_out.sum()
    # Errors of images of fit are scaled, not computed again.
    for score in sum(scores.values())[20:][held_out[20:]]:
        assert np.abs(detector.calibration_scores_ - score).min() < 1e-4
    assert set(detector.validation_indices_) <= set(np.flatnonzero(held_out))


def test_the_same_image_is_never_on_both_sides(make_detector, images, more):
    detector = make_detector().fit(images).partial_fit(more)
    before = [n_images(detector._fit_summary.learned), n_images(detector._fit_summary.held_out)]
    detector.partial_fit(more)
    kept = detector._fit_summary
    assert [n_images(kept.learned), n_images(kept.held_out)] == [
        2 * n - m for n, m in zip(before, (16, 4), strict=True)
    ]
    assert not set(kept.learned[VIEW].keys) & set(kept.held_out[VIEW].keys)
    assert not set(kept.learned_units) & set(kept.held_out_units)


def test_images_of_fit_that_come_again_keep_their_side(make_detector, images):
    detector = make_detector(contamination=0.2).fit(images)
    sides = detector._fit_summary.learned_units, detector._fit_summary.held_out_units
    detector.set_params(validation_fraction=0.9).partial_fit(images)
    np.testing.assert_array_equal(detector._fit_summary.learned_units, sides[0])
    np.testing.assert_array_equal(detector._fit_summary.held_out_units, sides[1])
    # Those that calibrate came twice, and still count once.
    assert len(detector.calibration_scores_) == 2 * len(sides[1])
    assert len(np.unique(detector.calibration_units_)) == len(sides[1])


def test_groups_keep_their_side_in_later_calls(make_detector, images, more):
    groups = np.repeat(["a", "b", "c", "d", "e"], 4)
    detector = make_detector(contamination=0.4, validation_fraction=0.4).fit(images, groups=groups)
    held_out = set(groups[detector.validation_indices_])
    before = len(detector.calibration_scores_)
    named = np.resize(groups, 30)
    detector.partial_fit(more, groups=named)
    n_new = sum(name in held_out for name in named)
    assert len(detector.calibration_scores_) == before + n_new
    assert len(np.unique(detector.calibration_units_)) == 2


@pytest.mark.parametrize(
    "retyped",
    [list, lambda lots: lots.astype(float), lambda lots: pd.Series(lots, dtype="Int64")],
    ids=["list", "float", "pandas"],
)
def test_groups_are_known_again_in_another_type(make_detector, images, more, retyped):
    lots = np.repeat([1, 2, 3, 4, 5], 4)
    detector = make_detector(contamination=0.4, validation_fraction=0.4).fit(images, groups=lots)
    held_out = set(lots[detector.validation_indices_])
    before = len(detector.calibration_scores_)
    again = np.resize(lots, len(more))
    detector.partial_fit(more, groups=retyped(again))
    assert len(detector.calibration_scores_) == before + sum(lot in held_out for lot in again)


def test_groups_of_two_types_stay_two(make_detector, images):
    groups = [1] * 10 + ["1"] * 10
    detector = make_detector(validation_fraction=0.5).fit(images, groups=groups)
    assert set(detector.validation_indices_) in (set(range(10)), set(range(10, 20)))


def test_partial_fit_keeps_the_rate_that_was_set(make_detector, images, more):
    detector = make_detector(contamination=0.2).fit(images).set_threshold(target_fpr=0.5)
    detector.partial_fit(more)
    assert detector.contamination_ == 0.5
    expected = conformal_threshold(detector.calibration_scores_, 0.5)
    assert detector.offset_ == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": "nonsense"}, "The 'fusion' parameter"),
        ({"fusion": "product"}, "fusion was 'standardized' in fit and is 'product' now"),
        ({"pca_variance": 0.5}, "pca_variance was None in fit and is 0.5 now"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' in fit and is 'bfloat16' now"),
        ({"batch_size": 0}, "The 'batch_size' parameter"),
    ],
    ids=str,
)
def test_partial_fit_checks_parameters_in_every_call(make_detector, images, change, message):
    detector = make_detector(contamination=0.2).fit(images)
    with pytest.raises(ValueError, match=message):
        detector.set_params(**change).partial_fit(["no such file"])


# --- calibrate


def test_calibrate_adds_images_to_the_threshold_alone(make_detector, images, more, odd_images):
    detector = make_detector(contamination=0.2).fit(images)
    scores = detector.score_samples(odd_images)
    before = detector.calibration_scores_
    detector.calibrate(more)
    np.testing.assert_array_equal(detector.score_samples(odd_images), scores)
    expected = np.concatenate([before, detector.score_samples(more)])
    np.testing.assert_allclose(detector.calibration_scores_, expected, rtol=1e-6, atol=1e-9)
    assert detector.offset_ == conformal_threshold(detector.calibration_scores_, 0.2)
    # A later partial_fit still knows them.
    detector.partial_fit(images[:4])
    assert len(detector.calibration_scores_) >= len(expected)


def test_calibrate_can_replace_what_calibrated(make_detector, images, more):
    detector = make_detector(contamination=0.2).fit(images).calibrate(more, replace=True)
    assert len(detector.calibration_scores_) == len(more)
    without = make_detector(contamination=0.2, validation_fraction=0.0).fit(images)
    assert without.calibrate(more).calibration_scores_ is not None
    assert without.p_values(more).min() == pytest.approx(2 / 31)  # of itself, too


def test_calibrate_refuses_what_was_learned_from(make_detector, images, more):
    detector = make_detector(contamination=0.2).fit(images)
    learned = np.delete(np.arange(20), detector.validation_indices_)
    with pytest.raises(ValueError, match=r"learned from 1 of 31 images.* is sample 30\)"):
        detector.calibrate([*more, images[learned[3]]])


def test_calibrate_takes_groups(make_detector, images, more):
    detector = make_detector(contamination=0.2).fit(images)
    detector.calibrate(more, groups=np.repeat(range(6), 5), replace=True)
    assert len(np.unique(detector.calibration_units_)) == 6
    assert detector.p_values(images).min() >= 1 / 7


@pytest.mark.parametrize("way", ["at once", "saved", "by group"])
def test_calibrate_counts_what_it_has_once(way, images, more, tmp_path):
    """An image, or a group, that calibrates is the same unit in a later call."""
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0,
        contamination=0.4, feature_spaces="pretrained",
    )  # fmt: skip
    groups = {"groups": np.arange(20)} if way == "by group" else {}
    detector.fit(images, **groups)
    if way == "saved":
        detector.save(tmp_path / "m")
        detector = TransformalyDetector.load(tmp_path / "m")
    assert detector.calibration_units_ is None  # each image is a unit
    held_out = detector.validation_indices_
    if way == "by group":
        detector.calibrate(more[:4], groups=held_out)
    else:
        detector.calibrate(images[held_out])
    assert len(detector.calibration_scores_) == 8
    assert len(np.unique(detector.calibration_units_)) == 4
    threshold = detector.offset_
    new = {"groups": np.arange(90, 93)} if way == "by group" else {}
    detector.calibrate(more[10:13], **new).calibrate(more[10:13], **new)
    assert len(np.unique(detector.calibration_units_)) == 7
    detector.calibrate(images[held_out], replace=True, **({"groups": held_out} if groups else {}))
    assert detector.calibration_units_ is None
    if way != "by group":
        assert detector.offset_ == threshold


def test_copies_stay_together(make_detector, images):
    """Every image four times: none is on both sides, and a copy counts for no more."""
    X = np.repeat(images, 4, axis=0)
    detector = make_detector(contamination=0.2).fit(X)
    held_out = detector.validation_indices_
    assert not set(held_out // 4) & set(np.delete(np.arange(80), held_out) // 4)
    assert len(detector.calibration_scores_) == len(held_out) == 16
    assert detector.p_values(images).min() == pytest.approx(2 / 5)  # of itself, too


def test_units_come_back_from_a_model_file(images, more, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0,
        contamination=0.4,
    ).fit(images, groups=np.repeat(range(5), 4))  # fmt: skip
    detector.save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.calibration_units_, detector.calibration_units_)
    np.testing.assert_array_equal(loaded.p_values(more), detector.p_values(more))
    with pytest.raises(ValueError, match="learned from"):
        loaded.calibrate(images)


def test_what_is_kept_is_bounded(make_detector, images, more, monkeypatch):
    monkeypatch.setattr(kept_room, "N_KEPT", 8)
    detector = make_detector(contamination=0.2).fit(images).partial_fit(more)
    assert n_images(detector._fit_summary.learned) == 8
    assert n_images(detector._fit_summary.held_out) == len(detector.calibration_scores_) == 8
    assert np.isfinite(detector.score_samples(more)).all()


# --- errors of seen and of unseen images


def test_block_students_are_not_trained_again(make_detector, images, more):
    detector = make_detector(student="block").fit(images)
    students = detector.distillation_.students_
    detector.partial_fit(more)
    assert detector.distillation_.students_ is students


@pytest.mark.parametrize(("dtype", "rtol"), [(None, 2e-3), ("float16", 0.05)])
def test_ridge_students_are_those_of_all_learned_images(make_detector, images, more, dtype, rtol):
    detector = make_detector(student_dtype=dtype).fit(images)
    learned = np.delete(images, detector.validation_indices_, axis=0)
    detector.partial_fit(more)
    everything = np.concatenate([learned, more[learned_of(detector, more)]])
    options = {"n_blocks": 2, "validation_fraction": 0.0, "student_dtype": dtype}
    fresh = BlockDistillation(backbone=detector.backbone, **options).fit(everything)
    np.testing.assert_allclose(
        detector.distillation_.transform(images), fresh.transform(images), rtol=rtol
    )


def test_errors_kept_of_fit_have_the_mean_that_new_students_have_on_its_images(
    make_detector, images, more
):
    detector = make_detector().fit(images)
    held_out = np.isin(np.arange(20), detector.validation_indices_)
    n_learned = (~held_out).sum()
    before, old = detector._fit_summary, detector.distillation_.transform(more)
    detector.partial_fit(more)
    errors = detector.distillation_.transform(images).astype(np.float64)
    new = detector.distillation_.transform(more).astype(np.float64)
    is_learned = learned_of(detector, more)
    kept = detector._fit_summary
    learned, calibrating = (rows_of(side, DISCREPANCY) for side in (kept.learned, kept.held_out))
    mean_of_fit = (learned.sum(axis=0) - new[is_learned].sum(axis=0)) / n_learned
    np.testing.assert_allclose(mean_of_fit, errors[~held_out].mean(axis=0), rtol=1e-3)
    # Nothing is kept of the held-out images of fit that gives their errors: new ones stand in.
    ratio = new[~is_learned].mean(axis=0) / old[~is_learned].mean(axis=0)
    of_fit = calibrating.sum(axis=0) - new[~is_learned].sum(axis=0)
    expected = rows_of(before.held_out, DISCREPANCY).sum(axis=0) * ratio
    np.testing.assert_allclose(of_fit, expected, rtol=1e-4)


def test_partial_fit_ranks_as_a_fit_of_the_same_images(make_detector, rng, odd_images):
    X, new = blobs(rng, 60), np.concatenate([blobs(rng, 60), odd_images])
    options = {"validation_fraction": 0.0}
    updated = make_detector(**options).fit(X[:30]).partial_fit(X[30:]).score_spaces(new)
    expected = make_detector(**options).fit(X).score_spaces(new)
    for space, scores in updated.items():
        assert spearmanr(scores, expected[space])[0] > 0.99


def test_errors_under_students_that_stay_are_scaled_to_those_of_seen_images(
    make_detector, images, more
):
    detector = make_detector(student="block", max_epochs=1).fit(images)
    before = detector._fit_summary
    seen, unseen = (
        rows_of(side, DISCREPANCY).mean(axis=0) for side in (before.learned, before.held_out)
    )
    detector.partial_fit(more)
    is_learned = learned_of(detector, more)
    new = detector.distillation_.transform(more[is_learned]).astype(np.float64) * seen / unseen
    found = rows_of(detector._fit_summary.learned, DISCREPANCY)
    expected = np.concatenate([rows_of(before.learned, DISCREPANCY), new])
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-5)


def test_errors_that_cannot_be_kept_apart_are_warned_of(make_detector, images, more):
    detector = make_detector(student="block", validation_fraction=0.0).fit(images)
    with pytest.warns(CalibrationWarning, match="mixes both. Fit with validation_fraction > 0"):
        detector.partial_fit(more)


def test_neither_memory_nor_workers_change_an_update(
    make_detector, images, more, odd_images, tmp_path
):
    def scores(**options) -> np.ndarray:
        detector = make_detector(**options).fit(images).partial_fit(more)
        return detector.score_samples(odd_images)

    expected = scores()
    for _ in range(2):  # the second time, `memory` has the students of fit
        np.testing.assert_array_equal(scores(memory=tmp_path), expected)
    with joblib.parallel_config("threading", n_jobs=2):
        np.testing.assert_array_equal(scores(), expected)


def test_maps_follow_the_students(make_detector, images, more):
    detector = make_detector().fit(images)
    before, old = detector._normal_patches, detector.distillation_.transform(more)
    detector.partial_fit(more)
    is_new = ~learned_of(detector, more)
    new = detector.distillation_.transform(more)
    ratio = new[is_new].mean(axis=0) / old[is_new].mean(axis=0)
    assert np.abs(np.log(ratio)).max() > 0.01
    moved = detector._normal_patches.location - before.location
    np.testing.assert_allclose(moved, [*np.log(ratio), 0], atol=1e-5)


def test_the_first_partial_fit_is_a_fit(make_detector, images, odd_images):
    first = make_detector().partial_fit(images)
    expected = make_detector().fit(images).score_samples(odd_images)
    np.testing.assert_array_equal(first.score_samples(odd_images), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "gmm"}, "GaussianMixtureDensity, cannot learn from more images"),
        ({"density": KernelDensity()}, "KernelDensity, cannot learn from more images"),
        ({"density": GaussianMixture(reg_covar=1e-2)}, "GaussianMixture, cannot learn"),
        ({"density": "knn", "pca_variance": 0.9}, "KNNDensity behind a PCA, cannot learn"),
    ],
)
def test_a_density_that_cannot_says_so_before_any_work(make_detector, images, options, message):
    detector = make_detector(**options).fit(images)
    with pytest.raises(ValueError, match=message):
        detector.partial_fit(["no such file"])


def test_a_partial_fit_that_fails_leaves_the_detector_whole(
    make_detector, images, more, odd_images, monkeypatch
):
    detector = make_detector().fit(images)
    expected = detector.score_samples(odd_images)
    monkeypatch.setattr(
        "skanomaly_vit.detector._fusion.conformal_threshold", None
    )  # at the very end
    with pytest.raises(TypeError):
        detector.partial_fit(more)
    with pytest.raises(ValueError, match="cannot be decoded"):
        detector.partial_fit([*more[:3], __file__])
    monkeypatch.undo()
    np.testing.assert_array_equal(detector.score_samples(odd_images), expected)
    assert detector.n_samples_fit_ == 20


def test_a_model_file_goes_on_where_it_was(images, more, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0
    ).fit(images)
    detector.save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m").partial_fit(more)
    np.testing.assert_array_equal(
        loaded.score_samples(more), detector.partial_fit(more).score_samples(more)
    )
    detector.save(tmp_path / "m")
    again = TransformalyDetector.load(tmp_path / "m")
    np.testing.assert_array_equal(again.score_samples(more), detector.score_samples(more))


def test_a_parameter_of_a_density_is_checked_in_fit(make_detector, images):
    with pytest.raises(ValueError, match="The 'shrinkage' parameter of GaussianDensity"):
        make_detector(density=GaussianDensity(shrinkage=5.0)).fit(images)
