"""`evaluate` and `one_vs_rest`: fits, figures, and their `memory`."""

from __future__ import annotations

import sys
import warnings
from typing import ClassVar

import joblib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline

from skanomaly_vit import GaussianDensity, ViTFeatures
from skanomaly_vit.evaluation import evaluate, one_vs_rest, pretraining_confusion
from skanomaly_vit.exceptions import CalibrationWarning, ConfusionWarning


class Brightness(OutlierMixin, BaseEstimator):
    """Normal is what is as bright as the training images."""

    seen: ClassVar[list[tuple[float, ...]]] = []
    fails_at: ClassVar[float | None] = None

    def __init__(self, power: int = 1) -> None:
        self.power = power

    def fit(self, X, y=None):
        values = tuple(sorted({float(np.asarray(x).mean()) for x in X}))
        if values and values[0] == self.fails_at:
            raise RuntimeError("out of light")
        self.seen.append(values)
        self.mean_ = np.mean([np.asarray(x).mean() for x in X])
        return self

    def score_samples(self, X):
        brightness = np.array([np.asarray(x).mean() for x in X])
        return -(np.abs(brightness - self.mean_) ** self.power)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Brightness, "seen", [])
    monkeypatch.setattr(Brightness, "fails_at", None)


def plain(*levels: int) -> np.ndarray:
    """Images of one grey each."""
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


TRAIN = plain(10, 12, 100, 102, 200, 202)
LABELS = ["dark", "dark", "grey", "grey", "light", "light"]
TEST = plain(11, 101, 201, 140)
TEST_LABELS = ["dark", "grey", "light", "light"]


def run(estimator=None, **options):
    given = {"test_images": TEST, "test_labels": TEST_LABELS} | options
    detector = Brightness() if estimator is None else estimator
    return one_vs_rest(detector, given.pop("images", TRAIN), given.pop("labels", LABELS), **given)


def test_unimodal_fits_on_the_class_alone_and_takes_the_rest_for_anomalies():
    table = run()
    assert Brightness.seen == [(10, 12), (100, 102), (200, 202)]
    assert table.index.tolist() == ["dark", "grey", "light", "mean"]
    # The light test images are 0 and 61 from the light mean, the others 100 and 190.
    assert table["auroc"].tolist() == [1, 1, 1, 1]
    assert table[["n_train", "n_normal", "n_anomalies"]].iloc[0].tolist() == [2, 1, 3]
    assert table[["n_train", "n_normal", "n_anomalies"]].loc["light"].tolist() == [2, 2, 2]


def test_multimodal_fits_on_all_but_the_class_and_looks_for_it():
    table = run(setting="multimodal")
    assert Brightness.seen == [(100, 102, 200, 202), (10, 12, 200, 202), (10, 12, 100, 102)]
    # Means 151, 106, 56: of what is far from them, the class in question is.
    assert table["auroc"].tolist()[:3] == [1, 0, 1]
    assert table.loc["mean", "auroc"] == pytest.approx(2 / 3)
    assert table["n_anomalies"].tolist()[:3] == [1, 1, 2]


def test_measures_agree_with_a_count_by_hand():
    test = plain(100, 104, 110, 103, 120)  # distances 0, 4, 10 of normal ones; 3, 20
    measured = evaluate(Brightness(), plain(100, 100), test, [1, 1, 1, -1, -1])
    assert measured["auroc"] == pytest.approx(4 / 6)
    assert measured["average_precision"] == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert measured["fpr95"] == pytest.approx(2 / 3)
    assert measured["fit_seconds"] >= 0
    assert measured["score_seconds"] >= 0


def test_labels_may_say_what_an_anomaly_is():
    test = plain(100, 200)
    measured = evaluate(Brightness(), plain(100), test, ["good", "crack"], anomaly_label="crack")
    assert measured["auroc"] == 1


def test_the_estimator_itself_is_not_fitted():
    estimator = Brightness()
    run(estimator)
    assert not hasattr(estimator, "mean_")


def test_some_classes_in_the_order_asked_for():
    rows = []
    table = run(classes=["light", "dark"], callback=rows.append)
    assert table.index.tolist() == ["light", "dark", "mean"]
    assert [row["class"] for row in rows] == ["light", "dark"]
    assert rows[0]["auroc"] == table["auroc"].iloc[0]


def test_rows_arrive_while_others_are_still_to_come():
    fits_so_far = []
    run(callback=lambda row: fits_so_far.append(len(Brightness.seen)))
    assert fits_so_far[0] < 3


def test_workers_measure_the_same():
    columns = ["n_train", "auroc", "average_precision", "fpr95"]
    assert run()[columns].equals(run(n_jobs=2)[columns])


def test_a_pipeline_on_a_backbone_and_on_paths(tiny, tmp_path, rng):
    paths = []
    for i in range(12):
        pixels = rng.integers(0, 60 if i < 6 else 255, (32, 32, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    labels = np.repeat([0, 1], 6)
    pipeline = make_pipeline(ViTFeatures(backbone=tiny), GaussianDensity())
    table = one_vs_rest(pipeline, paths, labels, test_images=paths, test_labels=labels)
    assert table.index.tolist() == [0, 1, "mean"]
    assert table.loc["mean", "auroc"] > 0.9


def test_any_outlier_detector_of_scikit_learn(rng):
    X = rng.normal(size=(60, 4)) + np.repeat([0, 5], 30)[:, None]
    labels = np.repeat(["a", "b"], 30)
    forest = IsolationForest(random_state=0)
    table = one_vs_rest(forest, X, labels, test_images=X, test_labels=labels)
    assert table.loc["mean", "auroc"] > 0.95


def test_what_was_measured_is_remembered_when_a_run_is_cut_off(tmp_path):
    Brightness.fails_at = 200
    with pytest.raises(RuntimeError, match="out of light") as caught:
        run(memory=tmp_path)
    assert "'light' (unimodal)" in caught.value.__notes__[0]
    Brightness.fails_at = None
    before = len(Brightness.seen)
    table = run(memory=tmp_path)
    assert Brightness.seen[before:] == [(200, 202)]
    assert table.equals(run(memory=tmp_path))
    assert len(Brightness.seen) == 3


def test_joblibs_memory_does_as_well(tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    assert run(memory=memory).equals(run(memory=memory))
    assert len(Brightness.seen) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"estimator": Brightness(power=2)},
        {"images": plain(10, 12, 100, 102, 200, 203), "classes": ["light"]},
        {"test_images": plain(11, 101, 201, 141)},
        {"test_labels": ["dark", "grey", "light", "grey"], "classes": ["light"]},
        {"labels": ["dark", "dark", "grey", "grey", "light", "grey"], "classes": ["light"]},
    ],
    ids=["parameter", "image", "test image", "test label", "label"],
)
def test_what_has_changed_is_measured_again(tmp_path, change):
    run(memory=tmp_path)
    before = len(Brightness.seen)
    turns = len(run(memory=tmp_path, **change)) - 1
    assert len(Brightness.seen) - before == turns


def test_a_file_with_another_content_is_another_image(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, image in zip(paths, TRAIN, strict=True):
        Image.fromarray(image).save(path)
    features = make_pipeline(Opened())
    options = {"images": paths, "memory": tmp_path / "memory", "test_images": paths}
    run(features, **options, test_labels=LABELS)
    Image.fromarray(TRAIN[0] + 1).save(paths[0])
    run(features, **options, test_labels=LABELS)
    assert len(Brightness.seen) == 6
    run(features, **options, test_labels=LABELS)
    assert len(Brightness.seen) == 6


class Weighed(Brightness):
    """`Brightness` times what a file says."""

    def __init__(self, pretrained="") -> None:
        super().__init__()
        self.pretrained = pretrained


def test_another_checkpoint_under_the_same_path_is_measured_again(tmp_path):
    checkpoint = tmp_path / "weights"
    pipeline = make_pipeline(Weighed(checkpoint))
    for weights in ("1", "1", "2"):
        checkpoint.write_text(weights)
        run(pipeline, memory=tmp_path / "memory")
    assert len(Brightness.seen) == 6  # three classes, two checkpoints


def test_what_another_detector_calls_a_device_is_its_own_affair(tmp_path):
    detector = Weighed()
    detector.device = "auto"
    assert len(run(detector, memory=tmp_path)) == 4


def test_tables_of_features_are_remembered_as_arrays_are(tmp_path, rng):
    X = pd.DataFrame(rng.normal(size=(60, 4)) + np.repeat([0, 5], 30)[:, None])
    labels = np.repeat(["a", "b"], 30)
    forest = IsolationForest(random_state=0)
    options = {"test_images": X, "test_labels": labels, "memory": tmp_path}
    table = one_vs_rest(forest, X, labels, **options)
    assert table.equals(one_vs_rest(forest, X, labels, **options))  # their seconds too
    X.iloc[0, 0] += 1
    assert not table.equals(one_vs_rest(forest, X, labels, **options))


@pytest.mark.parametrize("parameter", ["n_jobs", "verbose", "memory"])
def test_what_no_figure_depends_on_is_not_measured_again(tmp_path, parameter):
    forest = IsolationForest(random_state=0, n_estimators=5)
    options = {"test_images": TEST.reshape(4, -1), "memory": tmp_path / "figures"}
    rows = TRAIN.reshape(6, -1)
    if parameter == "memory":
        first, again = (make_pipeline(clone(forest), memory=m) for m in (None, str(tmp_path)))
    else:
        first, again = forest, clone(forest).set_params(**{parameter: 1})
    table = run(first, images=rows, **options)
    assert table.equals(run(again, images=rows, **options))  # their seconds too


def test_labels_that_are_tuples():
    labels = np.fromiter([("a", 1), ("a", 2)] * 3, dtype=object)
    test_labels = np.fromiter([("a", 1), ("a", 2)] * 2, dtype=object)
    table = run(labels=labels, test_labels=test_labels)
    assert table.index.tolist() == [("a", 1), ("a", 2), "mean"]


def test_an_unreadable_image_is_told_by_its_place_among_all(tiny, images):
    labels = np.repeat(["a", "b"], 10)
    broken = [*images[:15], np.full((32, 32, 3), np.nan), *images[16:]]
    pipeline = make_pipeline(ViTFeatures(backbone=tiny), GaussianDensity())
    with pytest.raises(ValueError, match="sample 5") as caught:
        one_vs_rest(pipeline, broken, labels, test_images=images, test_labels=labels)
    assert caught.value.__notes__ == [
        "Among the images of all classes: sample 15.",
        "This happened in the turn of class 'b' (unimodal).",
    ]


def test_a_detector_gives_one_score_an_image():
    class Columns(Brightness):
        def score_samples(self, X):
            return super().score_samples(X)[:, None]

    with pytest.raises(ValueError, match=r"Columns gave scores of shape \(4, 1\) for 4 test"):
        run(Columns())


@pytest.mark.parametrize("anomaly_label", ["carck", ["crack", "carck"], None])
def test_a_misspelt_anomaly_label_is_refused(anomaly_label):
    message = r"\[('carck'|None)\] is not among .* \['crack', 'good'\]"
    with pytest.raises(ValueError, match=message):
        evaluate(Brightness(), TRAIN, TEST[:2], ["good", "crack"], anomaly_label=anomaly_label)


def test_the_threshold_is_not_warned_of(make_detector, images):
    labels = np.repeat(["a", "b"], 10)
    detector = make_detector(n_blocks=1, contamination=0.01)
    with pytest.warns(CalibrationWarning):
        clone(detector).fit(images)
    with warnings.catch_warnings(action="error", category=CalibrationWarning):
        one_vs_rest(detector, images, labels, test_images=images, test_labels=labels)


class Opened(Brightness):
    """`Brightness` of files."""

    def fit(self, X, y=None):
        return super().fit([np.asarray(Image.open(path)) for path in X])

    def score_samples(self, X):
        return super().score_samples([np.asarray(Image.open(path)) for path in X])


def test_without_pandas_the_table_is_a_bunch(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoPandas(), *sys.meta_path])
    table = run()
    assert table.index.tolist() == ["dark", "grey", "light", "mean"]
    assert table.auroc.tolist() == [1, 1, 1, 1]


class NoPandas:
    """An importer to whom pandas is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ImportError(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "bimodal"}, r"setting='bimodal' is not one of \('unimodal', 'multimodal'\)"),
        ({"labels": LABELS[1:]}, "images holds 6 images and labels 5 labels"),
        ({"test_labels": [*TEST_LABELS, "dark"]}, "test_images holds 4 images and test_labels 5"),
        ({"classes": ["dark", "blue"]}, r"\['blue'\] is not among .* \['dark', 'grey', 'light'\]"),
        ({"classes": []}, "nothing is not among the labels"),
        ({"classes": "dark"}, "is one label; pass a list"),
        ({"classes": 3}, "classes=3 is one label; pass a list"),
        ({"classes": ["dark", "grey", "dark"]}, "names a class twice"),
        ({"images": iter(TRAIN)}, "images is of type .*iterator; pass a list or an array"),
        ({"memory": 3}, "memory=3 is no folder"),
        ({"estimator": LocalOutlierFactor()}, "no score_samples.*; pass novelty=True"),
        ({"labels": [None, *LABELS[1:]]}, "sample 0 has no label: labels holds None"),
        ({"test_labels": ["grey"] * 4}, "class 'dark' in the unimodal .* no normal test images"),
        ({"test_labels": ["dark"] * 4}, "'dark' .* has no anomalies among the test images"),
        ({"labels": ["dark"] * 6, "setting": "multimodal"}, "no normal images to fit on"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_fit(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
    assert not Brightness.seen


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, 1], "test_y has normal images only"),
        ([-1, -1], "test_y has anomalies only"),
        ([1, -1, 1], "test_images holds 2 images and test_y 3 labels"),
        ([0, 1], r"'auto' knows \+1 \(normal\) and -1 \(anomaly\) only"),
    ],
)
def test_one_split_needs_labels_of_both_kinds(y, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Brightness(), plain(100), plain(100, 200), y)
    assert not Brightness.seen


class Broken(Brightness):
    def score_samples(self, X):
        return np.where(np.arange(len(X)) == 2, -np.inf, super().score_samples(X))


def test_a_score_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"Broken gave 1 of 4 .* first test image 2: -inf"):
        run(Broken())


def test_what_gives_no_score_is_refused_before_any_fit(tiny):
    for call in (run, lambda e: evaluate(e, plain(1), plain(1, 2), [1, -1])):
        with pytest.raises(ValueError, match="ViTFeatures is no outlier detector"):
            call(ViTFeatures(backbone=tiny, image_size=-1))


def clusters(*centres: float, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(len(centres))]
    Z = rng.normal(size=(n * len(centres), 3)) + np.repeat(centres, n)[:, None]
    return Z, np.repeat(names, n)


def test_classes_at_one_place_are_confused_and_the_warning_names_them():
    Z, labels = clusters(0.0, 0.2, 30.0)
    with pytest.warns(ConfusionWarning, match=r"'class 0' among 'class 1' \(AUROC 0\.") as record:
        confusion = pretraining_confusion(Z, labels)
    assert record[0].filename == __file__
    assert {frozenset(entry[:2]) for entry in confusion.missed} == {
        frozenset(["class 0", "class 1"])
    }
    assert confusion.auroc[0, 1] < 0.7
    assert (confusion.auroc[2, :2] == 1).all()
    assert np.isnan(np.diag(confusion.auroc)).all()
    assert "class 2" not in [entry[0] for entry in confusion.missed]


def test_rows_are_normal_and_columns_are_anomalies():
    """A narrow class inside a wide one is hidden by it, and not the other way round."""
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(0, 10, (80, 2)), rng.normal(0, 0.1, (80, 2))])
    with pytest.warns(ConfusionWarning):
        confusion = pretraining_confusion(Z, np.repeat(["wide", "narrow"], 80))
    narrow, wide = 0, 1
    assert confusion.classes.tolist() == ["narrow", "wide"]
    assert confusion.auroc[narrow, wide] > 0.95
    assert confusion.auroc[wide, narrow] < 0.5
    assert [entry[:2] for entry in confusion.missed] == [("narrow", "wide")]


def test_the_class_that_hides_another_best_is_named():
    """The narrow class looks like its neighbour, but it is lost in the wide one."""
    rng = np.random.default_rng(0)
    clouds = [rng.normal(0, 0.1, (80, 2)), rng.normal(0.2, 0.1, (80, 2)), rng.normal(0, 9, (80, 2))]
    with pytest.warns(ConfusionWarning):
        confusion = pretraining_confusion(
            np.concatenate(clouds), np.repeat(["narrow", "neighbour", "wide"], 80), threshold=0.99
        )
    hidden_by = {name: other for name, other, _ in confusion.missed}
    assert hidden_by["narrow"] == hidden_by["neighbour"] == "wide"


def test_own_images_are_scored_by_a_density_that_has_not_seen_them():
    """In 40 dimensions, 45 images that a Gaussian has seen look far closer than new ones."""
    Z, labels = clusters(0.0, 0.0, n=45)
    Z = np.hstack([Z, np.random.default_rng(1).normal(size=(90, 37))])
    with pytest.warns(ConfusionWarning):
        auroc = pretraining_confusion(Z, labels, density=GaussianDensity(shrinkage=0.0)).auroc
    assert 0.3 < auroc[0, 1] < 0.7


@pytest.mark.parametrize(
    ("Z", "labels", "message"),
    [
        (np.zeros((4, 2)), ["a"] * 4, r"the class \['a'\] only"),
        (
            np.zeros((4, 2)),
            ["a", "a", "a", "b"],
            "class 'a' has 1 images that differ",
        ),
        (np.zeros((4, 2)), ["a", "b"], "features has 4 rows and labels 2"),
        (["a.png", "b.png"], ["a", "b"], r"For images, pass ViTFeatures\(\)"),
        (np.zeros((4, 8, 8, 3)), ["a", "b", "a", "b"], r"For images, pass ViTFeatures\(\)"),
    ],
)
def test_confusion_needs_classes_of_some_size(Z, labels, message):
    with pytest.raises(ValueError, match=message):
        pretraining_confusion(Z, labels)


def test_confusion_keeps_copies_in_one_fold():
    Z, labels = clusters(0.0, 9.0)
    seen = []

    class Spy(GaussianDensity):
        def fit(self, X, y=None):
            seen.append(set(np.unique(X, axis=0, return_counts=True)[1]))
            return super().fit(X, y)

    pretraining_confusion(np.repeat(Z, 2, axis=0), np.repeat(labels, 2), density=Spy())
    assert seen == [{2}] * 10


@pytest.mark.parametrize("names", [[1, "b"], [("a", 1), ("a", 2)]], ids=["mixed", "tuples"])
def test_confusion_gives_labels_back_as_they_are(names):
    Z, labels = clusters(0.0, 9.0)
    labels = np.fromiter([names[label == labels[-1]] for label in labels], dtype=object)
    assert pretraining_confusion(Z, labels).classes.tolist() == names


def test_a_threshold_in_percent_is_refused():
    with pytest.raises(ValueError, match="threshold=90 is no AUROC; pass one in"):
        pretraining_confusion(*clusters(0.0, 9.0), threshold=90)
