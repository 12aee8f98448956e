"""The detector: composition, fusion, threshold, and its place in scikit-learn."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from backbones import family
from images import blobs
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from students import with_student
from threadpoolctl import ThreadpoolController, threadpool_limits

from skanomaly_vit import (
    BlockDistillation,
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    ProgressBar,
    TransformalyDetector,
    ViTFeatures,
    WhitenedKNNDensity,
)
from skanomaly_vit.detector._recipes import resolve
from skanomaly_vit.distillation import BlockStudent, RidgeStudent
from skanomaly_vit.exceptions import LabelWarning
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer

# --- the score


def test_odd_images_score_lower_in_both_spaces(fitted, images, odd_images):
    y = np.array([1] * 20 + [0] * 6)
    scores = fitted.score_spaces(np.concatenate([images, odd_images]))
    assert roc_auc_score(y, scores["pretrained"]) > 0.9
    assert roc_auc_score(y, scores["discrepancy"]) > 0.9


def spaces_of(detector, X) -> tuple[np.ndarray, np.ndarray]:
    parts = (detector.features_, detector.distillation_)
    return tuple(part.transform(X).astype(np.float64) for part in parts)


def test_score_of_the_paper_is_the_sum_of_log_likelihoods(make_detector, images, odd_images):
    quick = {"max_epochs": 1}
    detector = make_detector(recipe="paper", **quick).fit(images)
    train = np.delete(np.arange(20), detector.validation_indices_)
    features, errors = (space[train] for space in spaces_of(detector, images))
    new_features, new_errors = spaces_of(detector, odd_images)
    pca = PCA(0.9, whiten=True, svd_solver="full").fit(features)
    gaussian = GaussianDensity(shrinkage=0.0).fit(pca.transform(features))
    expected = gaussian.score_samples(pca.transform(new_features)) + GaussianDensity(
        shrinkage=0.0
    ).fit(errors).score_samples(new_errors)
    np.testing.assert_allclose(detector.score_samples(odd_images), expected, rtol=1e-6)


def test_default_score_is_the_sum_of_standardised_scores(fitted, images, odd_images):
    """In units of the scores of training images that are left out; errors count half."""
    train = np.delete(np.arange(20), fitted.validation_indices_)
    seen, new = views_of(fitted, images), views_of(fitted, odd_images)
    own, expected = np.zeros(len(train)), np.zeros(6)
    for view, rows in seen.items():
        density = WhitenedKNNDensity(whitening_exponent=0.25).fit(rows[train])
        left_out = density.score_left_out(rows[train])
        scale = max(left_out.std(), 0.5 * np.sqrt(rows.shape[1] / 2))
        own += (left_out - left_out.mean()) / scale
        expected += (density.score_samples(new[view]) - left_out.mean()) / scale
    expected /= max(1, own.std())
    errors = fitted.distillation_.transform(images)[train]
    density = ExcessDensity(tail="exponential").fit(errors)
    left_out = density.score_left_out(errors)
    scores = density.score_samples(fitted.distillation_.transform(odd_images))
    expected += 0.5 * (scores - left_out.mean()) / max(left_out.std(), 0.5)
    np.testing.assert_allclose(fitted.score_samples(odd_images), expected, rtol=1e-6)


def views_of(detector, X) -> dict:
    rows = detector.features_.transform(X)
    return dict(zip(detector.recipe_.views, np.split(rows, 4, axis=1), strict=True))


def test_recipe_of_the_paper_fills_in_what_is_left_open(make_detector, images):
    """What section 4 of the paper says of the students, and no parameter that is given."""
    student = resolve(TransformalyDetector(recipe="paper"))["student"]
    assert isinstance(student, BlockStudent)
    assert (student.max_epochs, student.learning_rate) == (30, 1e-4)
    assert student.learning_rate_schedule == "constant"
    given = make_detector(recipe="paper", student="ridge", density="knn", fusion="standardized")
    given.fit(images)
    assert given.distillation_.student == "ridge"
    assert list(given.density_["pooled"].named_steps) == ["pca", "density"]
    assert isinstance(given.density_["discrepancy"], KNNDensity)
    assert given.fusion_["pooled"] != (0.0, 1.0)


def test_default_recipe_is_what_the_parts_do_alone(fitted, images):
    alone = BlockDistillation(backbone=fitted.backbone, n_blocks=2, random_state=0).fit(images)
    assert fitted.recipe_.student.get_params() == alone._student.get_params()
    assert type(fitted.recipe_.student) is type(alone._student)


def test_what_auto_became_is_told(make_detector, images):
    recipe = make_detector(contamination=0.2).fit(images).recipe_
    assert isinstance(recipe.student, RidgeStudent)
    assert recipe.pca_variance is None
    assert recipe.fusion == "standardized"
    assert recipe.views == ("pooled", "pooled:-2", "max_patch", "max_patch:-2")
    assert recipe.pooling == "max"
    assert recipe.density["pooled"].whitening_exponent == 0.25
    assert isinstance(recipe.density["discrepancy"], ExcessDensity)
    assert not hasattr(recipe.density["pooled"], "scale_")
    given = make_detector(
        feature_spaces="pretrained", views="max_patch", density="knn", pca_variance=0.9
    ).fit(images)
    assert given.recipe_.student is None
    assert list(given.recipe_.density) == ["max_patch"]
    assert isinstance(given.recipe_.density["max_patch"], KNNDensity)
    assert given.recipe_.pca_variance == 0.9


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_a_backbone_in_bfloat16_gives_float32(make_detector, images, odd_images, student, tmp_path):
    network = family("class token").to(torch.bfloat16)
    detector = make_detector(backbone=network, student=student, memory=str(tmp_path)).fit(images)
    scores, maps = detector.score_samples(odd_images, return_map=True)
    assert scores.max() < detector.score_samples(images).min()
    assert np.isfinite(maps).all()
    features = detector.features_.transform(odd_images)
    discrepancy = detector.distillation_.transform(odd_images)
    assert features.dtype == discrepancy.dtype == np.float32
    # Features are widened; errors are summed in float32, and not rounded again.
    np.testing.assert_array_equal(features, _as_bfloat16(features))
    assert (discrepancy != _as_bfloat16(discrepancy)).any()


def _as_bfloat16(values):
    return torch.from_numpy(values).bfloat16().float().numpy()


def test_contract_of_scikit_learns_outlier_detectors(fitted, images, odd_images):
    X = np.concatenate([images, odd_images])
    scores = fitted.score_samples(X)
    assert scores.shape == (26,)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(fitted.decision_function(X), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(scores < fitted.offset_, -1, 1))
    assert (fitted.predict(odd_images) == -1).all()


def test_unfitted_detector_says_so(make_detector, images):
    with pytest.raises(NotFittedError):
        make_detector().score_samples(images)


@pytest.mark.parametrize("space", ["pretrained", "discrepancy"])
def test_one_space_alone_is_that_part_of_both(make_detector, fitted, images, odd_images, space):
    alone = make_detector(feature_spaces=space).fit(images)
    # Beside views, errors count half.
    expected = (1 if space == "pretrained" else 2) * fitted.score_spaces(odd_images)[space]
    np.testing.assert_allclose(alone.score_samples(odd_images), expected, rtol=1e-6)


def test_without_discrepancies_no_student_is_trained(make_detector, images):
    assert make_detector(feature_spaces="pretrained").fit(images).distillation_ is None


def test_without_pca_the_density_sees_all_features(make_detector, images):
    detector = make_detector(pca_variance=None).fit(images)
    assert detector.density_["pooled"].n_features_in_ == 24


def test_pca_keeps_the_share_of_the_variance(make_detector, images):
    for share in (0.5, 0.95):
        pca = make_detector(pca_variance=share).fit(images).density_["max_patch"]["pca"]
        ratios = pca.explained_variance_ratio_
        assert ratios.sum() >= share
        assert ratios[:-1].sum() < share


# --- densities


@pytest.mark.parametrize(
    "density",
    [
        "gmm",
        "knn",
        GaussianDensity(shrinkage=0.5),
        GaussianMixtureDensity(n_components=1),
        KNNDensity(n_neighbors=2),
        KernelDensity(bandwidth=3.0),
        LocalOutlierFactor(novelty=True, n_neighbors=5),
        OneClassSVM(),
        IsolationForest(n_estimators=20),
        EllipticEnvelope(support_fraction=1.0),
        GaussianMixture(reg_covar=1e-2),
    ],
    ids=lambda density: density if isinstance(density, str) else type(density).__name__,
)
# The determinant of a covariance over more dimensions than samples: EllipticEnvelope says so.
@pytest.mark.filterwarnings("ignore:The covariance matrix associated to your dataset:UserWarning")
@pytest.mark.filterwarnings("ignore:Only one sample available:UserWarning")
def test_any_scorer_plugs_in_and_repeats_itself(make_detector, images, odd_images, density):
    detectors = [
        make_detector(density=density, fusion="standardized", pca_variance=0.5).fit(images)
        for _ in range(2)
    ]
    scores = [detector.score_samples(odd_images) for detector in detectors]
    np.testing.assert_array_equal(*scores)
    assert np.median(detectors[0].score_samples(images)) > np.median(scores[0])


def test_parameters_of_a_plugged_scorer_are_reached(make_detector, images):
    detector = make_detector(density=KNNDensity()).set_params(density__n_neighbors=3)
    assert detector.fit(images).density_["discrepancy"].n_neighbors == 3
    assert not hasattr(detector.density, "neighbors_")  # the parameter itself stays unfitted


def test_a_density_that_cannot_score_is_refused(make_detector, images):
    with pytest.raises(ValueError, match="The 'density' parameter"):
        make_detector(density=FunctionTransformer()).fit(images)


# --- the threshold


def test_threshold_comes_from_held_out_images(make_detector, images):
    detector = make_detector(contamination=0.25).fit(images)
    held_out = images[detector.validation_indices_]
    assert len(held_out) == 4
    scores = np.sort(detector.score_samples(held_out))
    np.testing.assert_allclose(np.sort(detector.calibration_scores_), scores, rtol=1e-5)
    assert detector.offset_ == detector.calibration_scores_.min()  # a quarter of 4 + 1, no more


def test_threshold_without_held_out_images_comes_from_the_training_ones(make_detector, images):
    detector = make_detector(contamination=0.25, validation_fraction=0).fit(images)
    assert (detector.predict(images) == -1).sum() == 5


@pytest.mark.parametrize("contamination", [0, 0.6, -0.1, "auto"])
def test_contamination_out_of_range(make_detector, images, contamination):
    with pytest.raises(ValueError, match="The 'contamination' parameter"):
        make_detector(contamination=contamination).fit(images)


def test_share_flagged_on_new_normal_images_is_near_contamination(make_detector, rng):
    detector = make_detector(contamination=0.2, validation_fraction=0.5).fit(blobs(rng, 200))
    flagged = np.mean(detector.predict(blobs(rng, 400)) == -1)
    # Binomial spread of the quantile of 100 images, and of the share among 400: 3.3 deviations.
    assert abs(flagged - 0.2) < 0.15


# --- few images, alike images


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_handful_of_images_is_enough(make_detector, images, odd_images, n):
    detector = make_detector().fit(images[:n])
    assert np.isfinite(detector.score_samples(odd_images)).all()


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_images_are_refused_before_any_work(make_detector, images, monkeypatch, n):
    monkeypatch.setattr(TransformalyDetector, "_load_teacher", None)  # would fail if called
    with pytest.raises(ValueError, match=rf"n_samples={n}\).*at least 2 must be left"):
        make_detector().fit(images[:n])


def test_images_all_the_same_are_named_as_such(make_detector, images):
    with pytest.raises(ValueError, match=r"20 images .* or are copies of one image"):
        make_detector().fit(images[[0] * 20])


# --- in scikit-learn


def test_cross_validation_ranks_normal_images_first(make_detector, images, odd_images):
    X, y = np.concatenate([images, odd_images]), np.array([1] * 20 + [-1] * 6)
    cv = [(np.arange(14), np.arange(14, 26)), (np.arange(6, 20), np.r_[0:6, 20:26])]
    scores = cross_val_score(make_detector(), X, y, scoring="roc_auc", cv=cv)
    np.testing.assert_array_equal(scores, [1.0, 1.0])


def test_grid_search_over_pca_variance_and_blocks_in_two_processes(
    make_detector, images, odd_images
):
    X, y = np.concatenate([images, odd_images]), np.array([1] * 20 + [-1] * 6)
    grid = {"pca_variance": [0.5, 0.9], "n_blocks": [1, 2]}
    options = {
        "scoring": anomaly_scorer(), "cv": NormalOnlyKFold(2, random_state=0), "refit": False,
        "error_score": "raise",
    }  # fmt: skip
    runs = [
        GridSearchCV(make_detector(), grid, n_jobs=n_jobs, **options).fit(X, y) for n_jobs in (1, 2)
    ]
    scores = [search.cv_results_["mean_test_score"] for search in runs]
    np.testing.assert_allclose(*scores)
    assert (scores[0] > 0.9).all()


def test_labels_that_show_anomalies_are_warned_about(make_detector, images):
    with pytest.warns(LabelWarning, match=r"labels of several kinds, \[-1, 1\]") as caught:
        make_detector().fit(images, [1] * 15 + [-1] * 5)
    assert caught[0].filename == __file__


def test_pipeline_ends_in_the_detector(make_detector, images, odd_images):
    darken = FunctionTransformer(lambda X: X // 2)
    pipeline = make_pipeline(darken, make_detector()).fit(images)
    assert (pipeline.predict(odd_images) == -1).all()


def test_the_transformers_feed_any_scikit_learn_detector(tiny, images, odd_images):
    pipeline = make_pipeline(ViTFeatures(backbone=tiny), IsolationForest(random_state=0))
    scores = pipeline.fit(images).score_samples(np.concatenate([images, odd_images]))
    assert scores[:20].mean() > scores[20:].mean()


def test_images_can_be_one_column_among_others(tiny, images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    frame = pd.DataFrame({"image": [str(p) for p in paths], "weight": np.arange(6.0)})
    columns = ColumnTransformer(
        [
            ("vit", ViTFeatures(backbone=tiny), ["image"]),
            (
                "blocks",
                BlockDistillation(**with_student(backbone=tiny, n_blocks=2, max_epochs=1)),
                "image",
            ),
        ],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    table = columns.fit_transform(frame)
    assert table.shape == (6, 24 + 2 + 1)
    assert list(table.columns[[0, 24, 25, 26]]) == ["pooled_0", "block1", "block2", "weight"]


def test_set_output_pandas(tiny, images):
    table = ViTFeatures(backbone=tiny).set_output(transform="pandas").fit_transform(images[:3])
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == [f"pooled_{i}" for i in range(24)]


def test_metadata_routing_is_left_intact(make_detector):
    routing = make_detector().get_metadata_routing()
    assert routing.fit.requests == {"groups": None}


def test_dump_scores_alike_in_a_fresh_process(fitted, odd_images, tmp_path):
    joblib.dump(fitted, tmp_path / "detector.joblib")
    np.save(tmp_path / "images.npy", odd_images)
    code = (
        "import joblib, numpy, sys; folder = sys.argv[1]\n"
        "detector = joblib.load(folder + '/detector.joblib')\n"
        "scores = detector.score_samples(numpy.load(folder + '/images.npy'))\n"
        "numpy.save(folder + '/scores.npy', scores)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_array_equal(scores, fitted.score_samples(odd_images))


def test_pickle_leaves_the_backbone_out_unless_told_otherwise(images):
    small = {"n_blocks": 1, "image_size": 28, "random_state": 0}
    sizes = {
        store: len(
            pickle.dumps(
                TransformalyDetector(**with_student(store_backbone=store, **small)).fit(images)
            )
        )
        for store in (False, True)
    }
    # A ridge student holds two maps of 384 x 384, 1.2 MB; each of four views what scores and what
    # `partial_fit` goes on from, matrices of that size in float64.
    assert sizes[False] < 25e6
    assert sizes[True] > 79e6  # the embedded backbone in float32


def test_pickle_with_its_backbone_loads_where_the_weights_are_gone(images, monkeypatch):
    detector = TransformalyDetector(
        n_blocks=1, image_size=28, random_state=0, store_backbone=True
    ).fit(images)
    expected = detector.score_samples(images)
    loaded = pickle.loads(pickle.dumps(detector))
    monkeypatch.setattr(TransformalyDetector, "_load_teacher", None)  # would fail if called
    monkeypatch.setattr(ViTFeatures, "_load_teacher", None)
    np.testing.assert_array_equal(loaded.score_samples(images), expected)


def test_random_backbone_is_found_again_by_its_seed(images):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, n_blocks=1, random_state=0
    ).fit(images)
    loaded = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))


def test_another_backbone_is_refused_on_load(fitted, images):
    loaded = pickle.loads(pickle.dumps(fitted))
    with torch.no_grad():
        loaded.features_.backbone.blocks[0].mlp.fc1.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"fitted with a backbone of fingerprint .* other weights"):
        loaded.score_samples(images)


# --- what a user sees while waiting


class Recorder:
    """A callback that writes down the tasks that begin and end."""

    max_propagation_depth = None

    def __init__(self):
        self.begun, self.ended, self.open = [], [], 0

    def setup(self, estimator, context):
        self.open += 1

    def teardown(self, estimator, context):
        self.open -= 1

    def on_fit_task_begin(self, estimator, context):
        self.begun.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        self.ended.append(context.task_name)


@pytest.mark.parametrize(
    ("student", "spaces", "epochs", "batches"),
    # 16 images in 2 batches to train on, 4 in 1 to validate, all 20 in 3 to embed.
    [
        ("block", "both", 2, 2 * 3 + 3),
        ("ridge", "both", 1, 2 + 3),
        ("ridge", "pretrained", 0, 3),
    ],
)
def test_callbacks_see_epochs_and_batches(make_detector, images, student, spaces, epochs, batches):
    recorder = Recorder()
    detector = make_detector(student=student, batch_size=8, feature_spaces=spaces).set_callbacks(
        recorder
    )
    detector.fit(images)
    assert recorder.begun.count("epoch") == epochs
    assert recorder.begun.count("features") == 1
    assert recorder.begun.count("batch") == batches
    assert sorted(recorder.begun) == sorted(recorder.ended)
    assert recorder.open == 0


def test_callbacks_are_closed_when_fit_fails(make_detector):
    recorder = Recorder()
    with pytest.raises(ValueError, match="0 sample"):
        make_detector().set_callbacks(recorder).fit([])
    assert recorder.open == 0


def test_callback_can_stop_training_after_an_epoch(make_detector, images):
    class Stop(Recorder):
        def on_fit_task_end(self, estimator, context):
            return context.task_name == "epoch"

    detector = make_detector(student="block", max_epochs=5).set_callbacks(Stop()).fit(images)
    assert len(detector.distillation_.history_) == 1


def test_distillation_alone_reports_too(tiny, images):
    recorder = Recorder()
    distillation = BlockDistillation(
        **with_student(backbone=tiny, student="block", n_blocks=1, max_epochs=2, random_state=0)
    )
    distillation.set_callbacks(recorder).fit(images)
    assert recorder.begun.count("epoch") == 2


def test_progress_bar_shows_epochs_and_batches(make_detector, images, capsys):
    detector = make_detector(batch_size=8).set_callbacks(ProgressBar()).fit(images)
    shown = capsys.readouterr().err
    assert re.search(r"TransformalyDetector fit: 100%\|.*\| 2/2 ", shown)
    assert "TransformalyDetector epoch: " in shown
    assert "TransformalyDetector features: " in shown
    assert pickle.loads(pickle.dumps(detector))._skl_callbacks  # no bar is left open


def test_progress_bar_of_a_failed_fit_is_closed(make_detector, images, capsys):
    class Stop(Recorder):
        def on_fit_task_begin(self, estimator, context):
            if context.task_name == "features":
                raise RuntimeError("stopped")

    bar = ProgressBar()
    with pytest.raises(RuntimeError, match="stopped"):
        make_detector().set_callbacks(bar, Stop()).fit(images)
    assert bar._bars == {}


def test_bars_of_scikit_learn_on_a_grid_search_reach_the_detector(make_detector, images, capsys):
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")
    search = GridSearchCV(
        make_detector(), {"n_blocks": [1]}, cv=2, scoring=lambda d, X, y=None: d.offset_
    )
    search.set_callbacks(callback.ProgressBar()).fit(images)
    shown = capsys.readouterr().out
    assert "GridSearchCV" in shown
    assert "epoch" in shown


def test_verbose_logs_a_line_per_epoch(make_detector, images, caplog):
    with caplog.at_level(logging.INFO, logger="skanomaly_vit"):
        make_detector(verbose=1, student="block").fit(images)
    assert [record for record in caplog.messages if record.startswith("epoch 2/2: mean student")]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="skanomaly_vit"):
        make_detector().fit(images)
    assert not caplog.messages


def test_verbose_is_seen_where_logging_is_not_set_up(tmp_path):
    code = (
        "import numpy as np; from skanomaly_vit import TransformalyDetector\n"
        "X = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)\n"
        "TransformalyDetector(verbose=1, n_blocks=1, image_size=28).fit(X)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "sees images of 28 x 28 pixels." in done.stderr
    assert "Solved the ridge students in" in done.stderr
    assert "of normal images, on average over deployments; 5 % takes more" in done.stderr
    assert done.stdout == ""


# --- repeatability


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_same_seed_same_scores_to_the_bit_and_another_seed_others(
    make_detector, images, odd_images, student
):
    scores = [
        make_detector(student=student, random_state=seed).fit(images).score_samples(odd_images)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": "knn"},
        {"density": "whitened_knn"},
        {"pca_variance": 0.9},
        {"student": "block", "max_epochs": 1},
    ],
    ids=str,
)
def test_a_score_does_not_depend_on_its_neighbours_to_the_bit(images, options):
    detector = TransformalyDetector(**with_student(n_blocks=2, random_state=0, **options)).fit(
        images
    )
    together = detector.score_samples(images)
    for size in (1, 2, 5):
        np.testing.assert_array_equal(detector.score_samples(images[:size]), together[:size])
    np.testing.assert_array_equal(detector.score_samples(images[::-1]), together[::-1])


def test_global_random_state_is_neither_used_nor_changed(make_detector, images):
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    make_detector().fit(images)
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])


def test_threads_that_score_at_once_do_not_see_each_others_images(fitted, images, odd_images):
    parts = [images[:10], odd_images, images[10:], odd_images[::-1]] * 5
    expected = [fitted.score_samples(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fitted.score_samples, parts))
    for one, other in zip(expected, together, strict=True):
        np.testing.assert_array_equal(one, other)


class Held:
    """A density that scores only when it is let go on."""

    def __init__(self, density):
        self.density = density
        self.entered, self.released = threading.Event(), threading.Event()

    def score_samples(self, X):
        self.entered.set()
        assert self.released.wait(300)
        return self.density.score_samples(X)


def blas_threads() -> list[int]:
    return [
        library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()
    ]


@pytest.fixture
def two_blas_threads():
    """As on two cores, set by a thread that ends: while it lives, others can set no limit."""

    def limit(n):
        thread = threading.Thread(target=threadpool_limits, args=(n, "blas"))
        thread.start()
        thread.join()

    before = blas_threads()
    limit(2)
    yield
    limit(max(before))


@pytest.mark.usefixtures("two_blas_threads")
def test_threads_that_score_at_once_leave_blas_its_threads(make_detector, images):
    detector = make_detector(feature_spaces="pretrained", views="pooled").fit(images)
    before = blas_threads()
    copies = [copy.copy(detector) for _ in range(2)]
    held = [Held(detector.density_["pooled"]) for _ in copies]
    with ThreadPoolExecutor(2) as pool:
        runs = []
        for one, density in zip(copies, held, strict=True):
            one.density_ = {"pooled": density}
            runs.append(pool.submit(one.score_samples, images))
            assert density.entered.wait(300)
        assert set(blas_threads()) == {1}
        for run, density in zip(runs, held, strict=True):  # first in, first out
            density.released.set()
            run.result()
    assert blas_threads() == before == [2] * len(before)


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_a_refit_that_fails_leaves_the_old_detector_whole(
    make_detector, images, odd_images, monkeypatch, student
):
    detector = make_detector(student=student).fit(images)
    expected = detector.score_samples(odd_images)
    monkeypatch.setattr(WhitenedKNNDensity, "_fit_rows", None)  # fails at the very end
    with pytest.raises(TypeError):
        detector.fit(odd_images)
    monkeypatch.undo()
    np.testing.assert_array_equal(detector.score_samples(odd_images), expected)


def test_a_refit_of_students_that_fails_leaves_the_old_ones_whole(
    tiny, images, odd_images, tmp_path
):
    distillation = BlockDistillation(backbone=tiny, n_blocks=2, random_state=0).fit(images)
    expected = distillation.transform(odd_images)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ValueError, match="cannot be decoded"):
        distillation.set_params(n_blocks=1).fit([*images[:10], empty])
    np.testing.assert_array_equal(distillation.transform(odd_images), expected)


def test_clone_of_a_fitted_detector_is_unfitted(fitted, images):
    with pytest.raises(NotFittedError):
        clone(fitted).predict(images)


def test_pickling_leaves_the_detector_as_it_was(fitted, images):
    teacher = fitted.features_._teacher
    pickle.dumps(fitted)
    assert fitted.features_._teacher is teacher
    assert fitted.distillation_._teacher is teacher


def test_the_device_can_be_changed_after_fit(fitted, images):
    expected = fitted.score_samples(images)
    with pytest.raises(ValueError, match="device='cuda:7' is not available"):
        fitted.set_params(device="cuda:7").score_samples(images)
    np.testing.assert_array_equal(fitted.set_params(device="cpu").score_samples(images), expected)


def test_a_pickle_that_is_mapped_into_memory_brings_no_warning(fitted, images, tmp_path):
    joblib.dump(fitted, tmp_path / "detector.joblib")
    mapped = joblib.load(tmp_path / "detector.joblib", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable.*")
        np.testing.assert_array_equal(mapped.score_samples(images), fitted.score_samples(images))
        mapped.anomaly_map(images)
        mapped.partial_fit(images)
        mapped.features_.transform(images)
        with_name = TransformalyDetector(
            backbone="skanomaly_tiny", pretrained=False, n_blocks=2, random_state=0
        ).fit(images)
        joblib.dump(with_name, tmp_path / "named.joblib")
        mapped = joblib.load(tmp_path / "named.joblib", mmap_mode="r")
        mapped.save(tmp_path / "named.skanomaly")
    loaded = TransformalyDetector.load(tmp_path / "named.skanomaly")
    np.testing.assert_array_equal(loaded.score_samples(images), with_name.score_samples(images))
