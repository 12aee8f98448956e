"""`evaluate_fitted` and `compare_fitted`: figures, intervals, and images that a detector knows."""

from __future__ import annotations

import numpy as np
import pytest
from images import blobs
from PIL import Image
from scipy.stats import beta, norm
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.evaluation import compare_fitted, evaluate_fitted
from skanomaly_vit.exceptions import UnreadableImageError


class Scores(OutlierMixin, BaseEstimator):
    """A detector whose samples are their own scores."""

    def __init__(self, threshold: float | None = 0.0, factor: float = 1.0) -> None:
        self.threshold = threshold
        self.factor = factor
        self.offset_ = threshold

    def score_samples(self, X):
        return self.factor * np.asarray(X, dtype=float)[:, 0]


def column(*scores):
    return np.array(scores, dtype=float)[:, None]


# Ten normal samples, one of them flagged; of the anomalies two cracks and a stain are found.
NORMAL = [-1.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
ODD = {"crack": [-9.0, -8, 0.5], "stain": [-7.0, 2.5]}
X = column(*NORMAL, *ODD["crack"], *ODD["stain"])
Y = ["good"] * 10 + ["crack"] * 3 + ["stain"] * 2


def measure(**options):
    return evaluate_fitted(Scores(), X, Y, anomaly_label=["crack", "stain"], **options)


def test_figures_are_those_of_the_counts():
    found = measure(false_alarm_rates=[0.05, 0.1, 0.3])
    assert (found.n_normal, found.n_anomalies) == (10, 5)
    assert found.auroc == roc_auc_score(np.repeat([0, 1], [10, 5]), -X[:, 0])
    assert found.auroc == pytest.approx(0.92)
    assert (found.n_false_alarms, found.n_found, found.threshold) == (1, 3, 0)
    assert (found.false_alarms.share, found.recall.share) == (0.1, 0.6)
    # Exact ends: the share at which so many, or so few, would have a probability of 2.5 %.
    ends = beta.ppf([0.025, 0.975], [1, 2], [10, 9])
    np.testing.assert_allclose(found.false_alarms.interval, ends, rtol=1e-9)
    assert found.by_kind.kind.tolist() == ["crack", "stain"]
    assert found.by_kind.n_images.tolist() == [3, 2]
    assert found.by_kind.n_found.tolist() == [2, 1]
    np.testing.assert_array_equal(found.by_kind.recall, [2 / 3, 1 / 2])
    # At 5 % of ten images none may be flagged, at 10 % one, at 30 % three.
    assert found.at_rates.threshold.tolist() == [-1, 1, 3]
    assert found.at_rates.false_alarms.tolist() == [0, 0.1, 0.3]
    assert found.at_rates.recall.tolist() == [3 / 5, 4 / 5, 1]
    assert found.misses.tolist() == [14, 12]
    assert found.alarms.tolist() == [0]
    np.testing.assert_array_equal(found.scores, X[:, 0])


def test_worst_misses_look_most_normal_and_worst_alarms_most_abnormal():
    scores = column(-1, -3, 5, -2, 6, 1, 9, 2)
    found = evaluate_fitted(Scores(), scores, [1, 1, 1, 1, -1, -1, -1, -1])
    assert found.alarms.tolist() == [1, 3, 0]
    assert found.misses.tolist() == [6, 4, 7, 5]


def test_kinds_may_be_given_beside_labels():
    y = np.repeat([1, -1], [10, 5])
    kinds = [None] * 10 + [3, 3, 3, "stain", "stain"]
    with pytest.raises(ValueError, match="sample 0 has no label: kinds holds None"):
        evaluate_fitted(Scores(), X, y, kinds=kinds)
    found = evaluate_fitted(Scores(), X, y, kinds=["-"] * 10 + kinds[10:])
    assert found.by_kind.kind.tolist() == [3, "stain"]
    assert found.by_kind.n_found.tolist() == [2, 1]


def test_a_detector_without_threshold_has_no_counts():
    found = evaluate_fitted(Scores(threshold=None), X, np.repeat([1, -1], [10, 5]))
    assert [found.threshold, found.n_found, found.n_false_alarms] == [None] * 3
    assert [found.recall, found.false_alarms] == [None] * 2
    assert np.isnan(found.by_kind.recall).all()
    assert len(found.misses) == len(found.alarms) == 0
    assert found.auroc == pytest.approx(0.92)
    assert found.by_kind.kind.tolist() == ["anomaly"]


@pytest.mark.parametrize(("n_normal", "n_anomalies", "shift"), [(20, 12, 1.0), (60, 30, 2.0)])
def test_the_interval_of_an_auroc_holds_it_as_often_as_it_says(n_normal, n_anomalies, shift):
    rng, true, n_times = np.random.default_rng(0), norm.cdf(shift / np.sqrt(2)), 400
    y = np.repeat([1, -1], [n_normal, n_anomalies])
    n_held = 0
    for _ in range(n_times):
        scores = rng.normal(size=len(y)) - shift * (y == -1)
        low, high = evaluate_fitted(Scores(), scores[:, None], y).auroc_interval
        n_held += low <= true <= high
    assert 0.93 <= n_held / n_times <= 0.98


def test_the_interval_of_an_auroc_of_1_has_a_width_that_shrinks():
    widths = []
    for n in (5, 50, 500):
        scores = np.arange(2.0 * n)[:, None]
        found = evaluate_fitted(Scores(), scores, np.repeat([-1, 1], n))
        assert found.auroc == found.auroc_interval.high == 1
        widths.append(1 - found.auroc_interval.low)
        back = evaluate_fitted(Scores(), scores, np.repeat([1, -1], n))
        assert back.auroc == back.auroc_interval.low == 0
        assert back.auroc_interval.high == pytest.approx(widths[-1], abs=1e-9)
    assert 0.2 < widths[0] < 0.6
    assert widths[0] > 5 * widths[1] > 25 * widths[2] > 0


def test_a_higher_confidence_gives_wider_intervals():
    narrow, wide = (measure(confidence=confidence) for confidence in (0.8, 0.99))
    for one, other in (
        (narrow.auroc_interval, wide.auroc_interval),
        (narrow.recall.interval, wide.recall.interval),
        (narrow.by_kind.recall_interval[0], wide.by_kind.recall_interval[0]),
    ):
        assert other[0] < one[0] < one[1] < other[1]


def test_remarks_say_what_few_images_do_not_tell():
    remarks = " ".join(measure().remarks)
    assert "could not be checked" in remarks
    assert "10 normal images are too few to measure at 1 % false alarms, which takes 100" in remarks
    assert "Fewer than 10 images of crack, stain" in remarks
    y = np.repeat([1, -1], [100, 10])
    many = evaluate_fitted(Scores(), np.arange(110.0)[:, None], y)
    assert len(many.remarks) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.5}, "confidence=1.5 is not in"),
        ({"false_alarm_rates": [0]}, "false_alarm_rates="),
        ({"false_alarm_rates": []}, "false_alarm_rates="),
        ({"known_images": "keep"}, "known_images='keep'"),
        ({"kinds": ["a"]}, "kinds holds 1 labels for 15 images"),
    ],
)
def test_wrong_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure(**options)


def test_wrong_samples_are_refused():
    with pytest.raises(ValueError, match="y holds 3 labels for 2 images"):
        evaluate_fitted(Scores(), X[:2], [1, 1, -1])
    with pytest.raises(ValueError, match="no anomalies among the 2 images"):
        evaluate_fitted(Scores(), X[:2], [1, 1])
    with pytest.raises(ValueError, match="no normal images among the 2 images"):
        evaluate_fitted(Scores(), X[:2], [-1, -1])
    with pytest.raises(ValueError, match="the first one is sample 1: nan"):
        evaluate_fitted(Scores(), column(1, np.nan), [1, -1])


# Images that a detector knows


@pytest.fixture(scope="module")
def detector(tiny):
    images = blobs(np.random.default_rng(0), 30)
    return TransformalyDetector(backbone=tiny, n_blocks=2, random_state=0).fit(images), images


@pytest.fixture(scope="module")
def new(detector):
    images = blobs(np.random.default_rng(7), 12)
    odd = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return np.concatenate([images, odd]), np.repeat([1, -1], [12, 6])


def test_images_that_the_detector_knows_are_refused_or_left_out(detector, new):
    fitted, known = detector
    X, y = new
    both, labels = np.concatenate([known[:10], X]), np.concatenate([np.ones(10, int), y])
    n_calibrating = np.isin(np.arange(10), fitted.validation_indices_).sum()
    assert 0 < n_calibrating < 10
    message = f"has learned from {10 - n_calibrating} of 28 images, and {n_calibrating} others"
    with pytest.raises(ValueError, match=f"{message}.*sample 0"):
        evaluate_fitted(fitted, both, labels)
    found = evaluate_fitted(fitted, both, labels, known_images="leave_out")
    alone = evaluate_fitted(fitted, X, y)
    assert (found.n_left_out, alone.n_left_out) == (10, 0)
    assert found.auroc == alone.auroc
    np.testing.assert_array_equal(found.alarms, alone.alarms + 10)
    np.testing.assert_array_equal(found.misses, alone.misses + 10)
    assert np.isnan(found.scores[:10]).all()
    np.testing.assert_array_equal(found.scores[10:], alone.scores)
    with pytest.raises(ValueError, match=r"\(30 that the detector knows were left out\)"):
        evaluate_fitted(fitted, known, np.repeat([1, -1], 15), known_images="leave_out")


def test_copies_are_told_and_may_not_differ_in_label(detector, new):
    fitted, _ = detector
    X, y = new
    again = np.concatenate([X, X[:2]]), np.concatenate([y, y[:2]])
    remarks = evaluate_fitted(fitted, *again).remarks
    assert "2 images are copies of others" in remarks[0]
    with pytest.raises(ValueError, match="sample 0 and sample 18 are copies of one image"):
        evaluate_fitted(fitted, np.concatenate([X, X[:1]]), [*y, -1])


def test_an_image_that_cannot_be_read_is_named(detector, tmp_path):
    fitted, _ = detector
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"missing\.png"):
        evaluate_fitted(fitted, [str(tmp_path / "a.png"), "missing.png"], [1, -1])


# Two detectors


def test_a_comparison_pairs_what_each_flags():
    y = np.repeat([1, -1], [10, 5])
    found = compare_fitted(Scores(0.0), Scores(2.75), X, y)
    assert (found.old.threshold, found.new.threshold) == (0, 2.75)
    assert found.false_alarms.only_old.tolist() == []
    assert found.false_alarms.only_new.tolist() == [1, 2]
    assert found.found.only_new.tolist() == [12, 14]
    assert found.found.p_value == 0.5  # two of two
    assert found.auroc == {"difference": 0, "interval": (0, 0), "p_value": 1}
    worse = compare_fitted(Scores(), Scores(factor=-1.0), X, y).auroc
    assert worse.difference == pytest.approx(2 * 0.08 - 1)
    assert worse.interval.high < -0.5
    assert worse.p_value < 1e-4
    assert compare_fitted(Scores(), Scores(None), X, y).found is None


def test_equal_detectors_differ_as_rarely_as_the_test_says():
    rng, y, n_times = np.random.default_rng(0), np.repeat([1, -1], [60, 40]), 200

    class Column(Scores):
        def score_samples(self, X):
            return np.asarray(X)[:, int(self.factor)]

    n_held = n_small = 0
    for _ in range(n_times):
        scores = rng.normal(size=(100, 1)) + 0.5 * rng.normal(size=(100, 2)) - (y == -1)[:, None]
        auroc = compare_fitted(Column(factor=0), Column(factor=1), scores, y).auroc
        n_held += auroc.interval[0] <= 0 <= auroc.interval[1]
        n_small += auroc.p_value < 0.05
    assert 0.92 <= n_held / n_times <= 0.98
    assert n_small == n_times - n_held


def test_a_comparison_leaves_out_what_either_knows(detector, new, tiny):
    fitted, _ = detector
    X, y = new
    other = TransformalyDetector(backbone=tiny, n_blocks=2, random_state=0).fit(X[:10])
    with pytest.raises(ValueError, match="sample 0"):
        compare_fitted(fitted, other, X, y)
    found = compare_fitted(fitted, other, X, y, known_images="leave_out")
    assert found.old.n_left_out == found.new.n_left_out == 10
    assert found.old.n_normal == found.new.n_normal == 2
