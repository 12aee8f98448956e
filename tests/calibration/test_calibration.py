"""Calibration: p-values, thresholds, batches and drift, from scores alone."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blobs
from scipy.stats import betabinom, binomtest, ks_2samp
from sklearn import config_context
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.calibration import (
    benjamini_hochberg,
    conformal_p_values,
    conformal_threshold,
    drift_test,
    false_alarm_bound,
    threshold_bound,
)
from skanomaly_vit.exceptions import CalibrationWarning, ThresholdWarning, UnreadableImageWarning
from skanomaly_vit.persistence import model_card

finite = st.floats(-1e6, 1e6)
scores_of = st.lists(finite, min_size=1, max_size=40)


class TestPValues:
    @given(calibration=scores_of, score=finite)
    def test_count_the_calibration_scores_that_are_no_higher(self, calibration, score):
        no_higher = sum(known <= score for known in calibration)
        expected = (1 + no_higher) / (len(calibration) + 1)
        assert conformal_p_values(calibration, [score])[0] == expected

    @settings(max_examples=30)
    @given(st.integers(1, 30), st.integers(0, 3))
    def test_are_valid_for_every_exchangeable_draw(self, n, n_ties):
        # All that matters is the new score's place among n + 1: over all places, each as likely,
        # the share of p-values up to a is at most a.
        scores = np.sort(np.random.default_rng(n).integers(0, 100 // 10**n_ties + 1, n + 1))
        p_values = np.array(
            [conformal_p_values(np.delete(scores, i), scores[[i]])[0] for i in range(n + 1)]
        )
        for a in p_values:
            assert (p_values <= a).mean() <= a + 1e-12

    def test_of_infinite_scores_are_the_extremes(self):
        np.testing.assert_allclose(conformal_p_values([1, 2, 3], [-np.inf, np.inf]), [0.25, 1])

    @pytest.mark.parametrize(
        ("calibration", "scores", "message"),
        [
            ([], [1.0], "calibration_scores have shape"),
            ([np.nan, 1], [1.0], "calibration_scores have shape"),
            ([[1.0]], [1.0], "calibration_scores have shape"),
            ([1.0], [np.nan, 2], "1 of them are NaN"),
            ([1.0], [[1.0]], "one number for each image"),
        ],
    )
    def test_refuse_what_is_no_score(self, calibration, scores, message):
        for function in (conformal_p_values, drift_test):
            with pytest.raises(ValueError, match=message):
                function(calibration, scores)


class TestThreshold:
    @given(calibration=scores_of, scores=scores_of, level=st.floats(0.01, 0.99))
    def test_flags_what_has_a_p_value_up_to_the_level(self, calibration, scores, level):
        if level * (len(calibration) + 1) < 1:
            return
        threshold = conformal_threshold(calibration, level)
        p_values = conformal_p_values(calibration, scores)
        np.testing.assert_array_equal(np.array(scores) < threshold, p_values <= level + 1e-9)

    @pytest.mark.parametrize(("n", "level"), [(19, 0.05), (99, 0.01), (13, 1 / 14), (1, 0.5)])
    def test_the_fewest_scores_that_suffice_do_not_warn(self, n, level):
        assert conformal_threshold(range(n), level) == 0
        with (
            pytest.warns(CalibrationWarning, match=rf"at least {n} are needed")
            if n > 1
            else pytest.raises(ValueError, match="calibration_scores")
        ):
            conformal_threshold(range(n - 1), level)

    def test_with_too_few_scores_is_the_lowest_and_says_at_what_rate(self):
        with pytest.warns(CalibrationWarning, match=r"4 calibration image.*at a rate of 0\.2\."):
            assert conformal_threshold([3.0, 1.0, 2.0, 4.0], 0.05) == 1.0

    def test_products_that_round_down_are_no_trap(self):
        assert conformal_threshold(range(99), 0.07) == 6  # 0.07 * 100 is 7.000000000000001
        assert conformal_threshold(range(99), 0.29) == 28  # 0.29 * 100 is 28.999999999999996

    @pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, np.nan])
    def test_refuses_a_level_out_of_range(self, level):
        with pytest.raises(ValueError, match="level="):
            conformal_threshold([1.0], level)

    def test_holds_its_level_on_average(self):
        rng = np.random.default_rng(0)
        flagged = [
            (rng.standard_t(2, 50) < conformal_threshold(rng.standard_t(2, 59), 0.05)).sum()
            for _ in range(2000)
        ]
        # Beside it: the percentile that is often taken of the scores, on the same draws.
        assert np.mean(flagged) / 50 == pytest.approx(0.05, abs=0.004)


class TestBenjaminiHochberg:
    def test_is_the_step_up_procedure(self):
        p_values = np.array([0.3, 0.001, 0.04, 0.019, 0.9])
        order = np.sort(p_values)
        passed = [i for i in range(5) if order[i] <= 0.1 * (i + 1) / 5]
        expected = p_values <= order[passed[-1]]
        np.testing.assert_array_equal(benjamini_hochberg(p_values, 0.1), expected)
        assert expected.sum() == 3

    def test_bounds_the_share_of_false_alarms(self):
        rng = np.random.default_rng(0)
        shares = []
        for _ in range(400):
            scores = np.concatenate([rng.normal(size=90), rng.normal(-4, 1, 10)])
            flagged = benjamini_hochberg(conformal_p_values(rng.normal(size=400), scores), 0.2)
            shares.append(flagged[:90].sum() / max(flagged.sum(), 1))
        assert 0.12 < np.mean(shares) <= 0.2

    def test_an_empty_batch_has_no_alarms(self):
        assert benjamini_hochberg([]).shape == (0,)

    @pytest.mark.parametrize("p_values", [[1.1], [-0.1], [np.nan], [[0.5]]])
    def test_refuses_what_is_no_p_value(self, p_values):
        with pytest.raises(ValueError, match="p_values"):
            benjamini_hochberg(p_values)

    @pytest.mark.parametrize("q", [0, 1, -1])
    def test_refuses_a_rate_out_of_range(self, q):
        with pytest.raises(ValueError, match="q="):
            benjamini_hochberg([0.5], q)


class TestDrift:
    def test_is_rare_where_nothing_moved(self):
        rng = np.random.default_rng(0)
        found = sum(
            drift_test(rng.normal(size=100), rng.normal(size=40)).p_value <= 0.05
            for _ in range(1000)
        )
        assert binomtest(found, 1000, 0.05, alternative="greater").pvalue > 0.01

    @pytest.mark.parametrize(("shift", "direction"), [(-1, "lower"), (1, "higher")])
    def test_is_found_and_its_direction_told(self, rng, shift, direction):
        test = drift_test(rng.normal(size=200), rng.normal(shift, 1, 100))
        assert test.p_value < 1e-3
        assert test.direction == direction

    def test_a_few_anomalies_are_none(self, rng):
        known, batch = rng.normal(size=400), rng.normal(size=400)
        batch[:60] = -50
        assert drift_test(known, batch).p_value > 0.01
        assert drift_test(known, batch, anomaly_share=0).p_value < 0.01

    def test_without_a_share_of_anomalies_is_the_test_of_all_scores(self, rng):
        known, batch = rng.normal(size=30), rng.normal(size=20)
        found = drift_test(known, batch, anomaly_share=0)
        expected = ks_2samp(known, batch)
        assert found.p_value == pytest.approx(expected.pvalue / 0.99, rel=1e-12)
        assert found.statistic == expected.statistic
        assert found.n_compared == 20

    def test_a_batch_that_lies_below_all_is_one(self):
        # Lamp off: half of 40 may be anomalies, and 20 normal ones below the 5th of 100 scores.
        found = drift_test(range(100), np.full(40, -1.0))
        assert found.p_value == pytest.approx(100 * betabinom(20, 5, 96).pmf(20), rel=1e-9)
        assert found.p_value < 1e-9
        assert (found.direction, found.statistic, found.n_compared) == ("lower", 0, 0)
        # Five times of six: what is left to compare has not moved.
        found = drift_test(range(100), [*np.full(50, -1.0), *range(5, 100, 10)])
        assert found.p_value < 1e-3
        assert (found.direction, found.n_compared) == ("lower", 10)

    def test_a_bad_lot_of_half_the_batch_is_none(self, rng):
        known, batch = rng.normal(size=400), rng.normal(size=80)
        batch[:40] = -50
        assert drift_test(known, batch).p_value > 0.01

    def test_a_few_images_below_all_are_no_proof(self):
        assert drift_test(range(100), [-1.0, -1.0]).p_value == 1

    @pytest.mark.parametrize("n_ties", [1, 10])
    def test_of_low_batches_is_valid_for_every_exchangeable_draw(self, n_ties):
        """Two normal images beside an anomaly: all places of two among the scores are as likely."""
        scores = np.arange(12) // n_ties
        p_values = []
        for pair in itertools.combinations(range(12), 2):
            known = np.delete(scores, pair)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                found = drift_test(known, [*scores[list(pair)], -9.0], anomaly_share=0.5)
            p_values.append(found.p_value)
        for level in np.unique(p_values):
            assert (np.array(p_values) <= level).mean() <= level + 1e-12

    @pytest.mark.parametrize(
        ("known", "batch", "message"),
        [
            (range(100), [], "0 of 0 images and 95 calibration images"),
            ([1.0] * 50, [1.0, 1.0, 2.0], "1 of 3 images and 0 calibration images"),
        ],
    )
    def test_with_nothing_to_compare_says_so(self, known, batch, message):
        with pytest.warns(CalibrationWarning, match=message):
            assert drift_test(known, batch).p_value == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drift_test(range(100), [-5, 50])

    @pytest.mark.parametrize("share", [-0.1, 1])
    def test_refuses_a_share_out_of_range(self, share):
        with pytest.raises(ValueError, match="anomaly_share"):
            drift_test([1.0], [1.0], anomaly_share=share)


# --- the detector


@pytest.fixture
def many(rng):
    return blobs(rng, 60)


class TestDetector:
    def test_p_values_are_those_of_the_calibration_scores(self, make_detector, many, odd_images):
        detector = make_detector().fit(many[:40])
        expected = conformal_p_values(
            detector.calibration_scores_, detector.score_samples(odd_images)
        )
        np.testing.assert_array_equal(detector.p_values(odd_images), expected)
        assert (detector.p_values(odd_images) == 1 / 9).all()

    def test_predict_flags_p_values_up_to_contamination(self, make_detector, many, odd_images):
        detector = make_detector(contamination=0.3).fit(many[:40])
        X = np.concatenate([many[40:], odd_images])
        np.testing.assert_array_equal(detector.predict(X) == -1, detector.p_values(X) <= 0.3)

    @pytest.mark.parametrize("student", ["ridge", "block"])
    @pytest.mark.parametrize("pca_variance", [None, 0.9])
    def test_nothing_is_learned_from_or_chosen_by_calibration_images(
        self, make_detector, many, odd_images, student, pca_variance
    ):
        parameters = {"student": student, "pca_variance": pca_variance, "max_epochs": 3}
        detector = make_detector(**parameters).fit(many[:40])
        scores = detector.score_samples(many[:40])
        calibrating = np.flatnonzero(
            np.isin(scores.round(3), detector.calibration_scores_.round(3))
        )
        assert len(calibrating) == len(detector.calibration_scores_)
        changed = many[:40].copy()
        changed[calibrating[:4]] = odd_images[:4]
        changed[calibrating[4:]] = 255 - changed[calibrating[4:]]
        again = make_detector(**parameters).fit(changed)
        np.testing.assert_array_equal(again.score_samples(many), detector.score_samples(many))
        assert not np.array_equal(again.calibration_scores_, detector.calibration_scores_)

    def test_the_threshold_moves_without_a_fit(self, make_detector, many, embedded):
        detector = make_detector().fit(many)
        embedded.clear()
        assert detector.set_threshold(target_fpr=0.4) is detector
        assert not embedded
        assert detector.offset_ == np.sort(detector.calibration_scores_)[4]
        with pytest.warns(CalibrationWarning, match="12 calibration image"):
            detector.set_threshold(target_fpr=0.01)
        with pytest.raises(ValueError, match="target_fpr=0 "):
            detector.set_threshold(target_fpr=0)

    def test_a_fit_on_too_few_images_says_how_many_it_takes(self, make_detector, images):
        with pytest.warns(CalibrationWarning, match="at least 19 are needed"):
            make_detector().fit(images)

    def test_without_held_out_images_there_are_no_p_values(self, make_detector, images):
        detector = make_detector(validation_fraction=0).fit(images)
        assert detector.calibration_scores_ is None
        for ask in (detector.p_values, detector.drift, detector.audit):
            with pytest.raises(ValueError, match="validation_fraction"):
                ask(images)

    def test_images_that_cannot_be_read_have_no_p_value(self, make_detector, many, tmp_path):
        detector = make_detector(on_error="nan").fit(many)
        (tmp_path / "broken.png").write_text("no image")
        X = [*many[:3], tmp_path / "broken.png", *many[3:12]]
        with pytest.warns(UnreadableImageWarning):
            p_values = detector.p_values(X)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(p_values)), [3])
        np.testing.assert_array_equal(np.delete(p_values, 3), detector.p_values(many[:12]))
        with pytest.warns(UnreadableImageWarning):
            assert detector.drift(X) == detector.drift(many[:12])

    def test_drift_is_told(self, make_detector, many, rng):
        detector = make_detector().fit(many)
        assert detector.drift(blobs(rng, 30)).p_value > 0.01
        darker = (blobs(rng, 30) * 0.6).astype(np.uint8)
        assert detector.drift(darker).p_value < 0.01

    def test_an_audit_finds_what_does_not_belong(self, make_detector, many, odd_images):
        X = np.concatenate([many[:37], odd_images[:3]])
        detector = make_detector()
        audit = detector.audit(X)
        assert set(audit.order[:3]) == {37, 38, 39}
        np.testing.assert_array_equal(audit.order, np.argsort(audit.scores))
        assert not hasattr(detector, "offset_")

    def test_an_audit_takes_groups_apart(self, make_detector, many):
        groups = np.arange(40) % 4
        seen = []

        class Spy(type(make_detector())):
            def fit(self, X, y=None, groups=None):
                seen.append(set(groups))
                return super().fit(X, y, groups)

        Spy(**make_detector().get_params()).audit(list(many[:40]), groups=groups, cv=4)
        assert sorted(map(sorted, seen)) == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]

    @pytest.mark.parametrize("groups", [None, np.arange(40) // 5])
    def test_an_audit_keeps_copies_together(self, make_detector, many, groups):
        X = many[np.arange(40) // 2]  # pairs, some of two groups
        seen, tested = [], []

        class Spy(type(make_detector())):
            def fit(self, X, y=None, groups=None):
                seen.append({image.tobytes() for image in X})
                return super().fit(X, y, groups)

            def score_samples(self, X):
                tested.append({image.tobytes() for image in X})
                return super().score_samples(X)

        folds = {"cv": 4} if groups is None else {"cv": 2, "groups": groups}
        Spy(**make_detector().get_params()).audit(X, **folds)
        assert len(seen) == len(tested) == folds["cv"]
        for learned, scored in zip(seen, tested, strict=True):
            assert not learned & scored


class TestGroups:
    def test_are_held_out_together(self, make_detector, many):
        groups = np.repeat(list("abcdef"), 10)
        detector = make_detector(validation_fraction=0.3).fit(many, groups=groups)
        held_out = set(groups[detector.validation_indices_])
        assert len(held_out) == 2
        assert not held_out & set(np.delete(groups, detector.validation_indices_))

    def test_choose_epochs_or_calibrate_as_a_whole(self, make_detector, many):
        groups = np.repeat(list("abcdef"), 10)
        detector = make_detector(validation_fraction=0.6, student="block", max_epochs=1)
        detector.fit(many, groups=groups)
        held_out = detector.validation_indices_
        choosing = detector.distillation_.validation_indices_
        calibrating = np.setdiff1d(held_out, choosing)
        assert len(set(groups[choosing])) == len(set(groups[calibrating])) == 2
        assert not set(groups[choosing]) & set(groups[calibrating])
        assert len(detector.calibration_scores_) == len(calibrating)

    def test_one_that_is_held_out_alone_calibrates(self, make_detector, many):
        detector = make_detector(student="block", max_epochs=1)
        detector.fit(many, groups=np.repeat(["a", "b", "c"], 20))
        assert len(detector.distillation_.validation_indices_) == 0
        assert len(detector.calibration_scores_) == len(detector.validation_indices_) == 20

    def test_that_are_not_given_leave_every_second_image_to_each(self, make_detector, many):
        detector = make_detector(student="block", max_epochs=1).fit(many)
        held_out, choosing = (
            detector.validation_indices_,
            detector.distillation_.validation_indices_,
        )
        np.testing.assert_array_equal(choosing, held_out[1::2])
        assert len(detector.calibration_scores_) == len(held_out[::2])

    def test_are_routed_through_a_pipeline(self, make_detector, many):
        groups = np.repeat(list("abcdef"), 10)
        with config_context(enable_metadata_routing=True):
            detector = make_detector().set_fit_request(groups=True)
            make_pipeline(FunctionTransformer(), detector).fit(many, groups=groups)
        held_out = set(groups[detector.validation_indices_])
        assert not held_out & set(np.delete(groups, detector.validation_indices_))

    @pytest.mark.parametrize(
        ("groups", "message"),
        [(["a"] * 20, "to one group, or are copies"), (["a", "b"], r"shape \(2,\)")],
    )
    def test_that_cannot_be_taken_apart_are_refused(self, make_detector, images, groups, message):
        with pytest.raises(ValueError, match=message):
            make_detector().fit(images, groups=groups)

    @pytest.mark.parametrize(
        ("groups", "fraction", "message"),
        [
            (["a"] * 10 + ["b"] * 10, 0.6, r"2 groups, .*=0\.6 holds out 2, and 20 images"),
            (range(20), 0.95, r"20 groups, .*=0\.95 holds out 19, and 19 images"),
        ],
    )
    def test_that_leave_too_few_images_are_refused_before_any_work(
        self, make_detector, images, embedded, groups, fraction, message
    ):
        detector = make_detector(validation_fraction=fraction)
        with pytest.raises(ValueError, match=f"{message}.*at least 2.*a smaller validation_fract"):
            detector.fit(images, groups=groups)
        assert embedded == []

    def test_of_another_number_are_refused_though_none_is_held_out(self, make_detector, images):
        with pytest.raises(ValueError, match=r"groups has shape \(2,\)"):
            make_detector(validation_fraction=0).fit(images, groups=["a", "b"])


# --- contamination after fit


def test_contamination_changed_after_the_fit_is_told_once(make_detector, images):
    detector = make_detector(contamination=0.2).fit(images)
    assert detector.contamination_ == 0.2
    labels = detector.predict(images)
    detector.set_params(contamination=0.5)
    with pytest.warns(ThresholdWarning, match=r"from 0\.2 to 0\.5 .*rate of 0\.2, which is still"):
        np.testing.assert_array_equal(detector.predict(images), labels)
    detector.predict(images)  # warnings are errors here: the second time there is none
    assert repr(detector).endswith("# threshold set at a false-alarm rate of 0.2")


def test_a_threshold_that_was_set_is_no_surprise(make_detector, images):
    detector = make_detector(contamination=0.2).fit(images).set_threshold(target_fpr=0.4)
    assert detector.contamination_ == 0.4
    detector.predict(images)
    assert repr(detector).endswith("# threshold set at a false-alarm rate of 0.4")
    assert "rate of" not in repr(make_detector())


def test_a_model_file_knows_the_rate_of_its_threshold(images, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=1, random_state=0,
        contamination=0.2,
    ).fit(images).set_threshold(target_fpr=0.3)  # fmt: skip
    detector.set_params(contamination=0.5).save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    assert (loaded.contamination, loaded.contamination_) == (0.5, 0.3)
    with pytest.warns(ThresholdWarning, match=r"from 0\.2 to 0\.5 .*rate of 0\.3"):
        loaded.predict(images)
    assert model_card(tmp_path / "m")["false_alarm_rate"] == 0.3


# --- ties, groups as units, certificates


@pytest.mark.parametrize("kind", ["continuous", "4 levels", "one decimal", "one bad frame"])
def test_drift_is_valid_with_ties(kind):
    rng = np.random.default_rng(0)
    draw = {
        "continuous": lambda n: rng.normal(size=n),
        "4 levels": lambda n: rng.integers(0, 4, n),
        "one decimal": lambda n: rng.normal(size=n).round(1),
        "one bad frame": lambda n: np.where(rng.random(n) < 0.1, -3.0, rng.normal(size=n)),
    }[kind]
    found = [drift_test(draw(400), draw(400)).p_value <= 0.05 for _ in range(300)]
    assert binomtest(sum(found), 300, 0.05, alternative="greater").pvalue > 1e-3


def test_drift_is_found_among_ties():
    rng = np.random.default_rng(0)
    assert drift_test(rng.integers(0, 4, 400), rng.integers(0, 3, 400)).p_value < 1e-3


def test_groups_are_the_units_of_p_values_and_thresholds():
    """With an effect of each group, an image of a new one keeps its rate by groups alone."""
    rng = np.random.default_rng(0)
    groups, alarms = np.repeat(np.arange(19), 30), []
    for _ in range(2000):
        scores = rng.normal(size=(20, 1)) + rng.normal(size=(20, 30))
        known, new = scores[:19].ravel(), scores[19, :1]
        p = conformal_p_values(known, new, groups=groups)[0]
        by_image = conformal_p_values(known, new)[0]
        flagged = new[0] < conformal_threshold(known, 0.05, groups=groups)
        assert flagged == (p <= 0.05 + 1e-12)
        alarms.append((p <= 0.05, by_image <= 0.05))
    by_group, by_image = np.mean(alarms, axis=0)
    assert by_group <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert by_image > by_group


def test_groups_of_one_image_are_images():
    scores = np.random.default_rng(0).normal(size=59)
    new = np.linspace(-3, 3, 50)
    np.testing.assert_allclose(
        conformal_p_values(scores, new, groups=np.arange(59)), conformal_p_values(scores, new)
    )
    expected = conformal_threshold(scores, 0.1)
    assert conformal_threshold(scores, 0.1, groups=np.arange(59)) == expected


def test_too_few_groups_are_counted_as_groups():
    with pytest.warns(CalibrationWarning, match=r"^4 calibration group\(s\) are too few .* 19 are"):
        conformal_threshold(np.arange(400.0), 0.05, groups=np.repeat(np.arange(4), 100))


@pytest.mark.parametrize("groups", [[1, 2], [[1], [2], [3]]])
def test_groups_have_the_length_of_the_scores(groups):
    with pytest.raises(ValueError, match=r"pass the group of each of 3 calibration scores"):
        conformal_p_values([1.0, 2.0, 3.0], [1.0], groups=groups)


@pytest.mark.parametrize(("n", "level"), [(299, 0.01), (1000, 0.05)])
def test_a_certified_threshold_holds_in_most_deployments(n, level):
    """Of 1,000 calibration sets, at least 95 % (less noise) have a true rate of at most `level`."""
    rng = np.random.default_rng(0)
    held = [
        conformal_threshold(rng.random(n), level, confidence=0.95) <= level for _ in range(1000)
    ]
    assert binomtest(sum(held), 1000, 0.95, alternative="less").pvalue > 1e-3
    average = [conformal_threshold(rng.random(n), level) <= level for _ in range(1000)]
    assert np.mean(average) < 0.9


def test_a_certificate_says_how_many_images_it_takes():
    conformal_threshold(np.arange(299.0), 0.01, confidence=0.95)
    with pytest.raises(ValueError, match=r"at least 299 calibration image\(s\), and there are 298"):
        conformal_threshold(np.arange(298.0), 0.01, confidence=0.95)


@pytest.mark.parametrize("n", [20, 300])
def test_all_bounds_hold_together(n):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(1000):
        curve = false_alarm_bound(rng.random(n))
        held.append((curve.threshold <= curve.bound).all())
    assert binomtest(sum(held), 1000, 0.95, alternative="less").pvalue > 1e-3
    assert np.mean(held) < 0.985  # nor is it much wider than it has to be
    assert (curve.bound > curve.estimate).all()


def test_bounds_of_few_scores_are_exact():
    assert false_alarm_bound([0.5]).bound == pytest.approx(0.95)
    low, high = false_alarm_bound([0.2, 0.5]).bound
    assert high**2 - (high - low) ** 2 == pytest.approx(0.95)  # the share of pairs below both


def test_bounds_of_thousands_of_scores_reach_those_of_one_threshold():
    scores = np.arange(3000.0)
    curve = false_alarm_bound(scores)
    single = threshold_bound(scores, scores[150])
    assert single < curve.bound[150] < 1.5 * single


def test_bounds_of_groups_are_those_of_their_lowest_scores():
    scores = np.random.default_rng(0).normal(size=60)
    curve = false_alarm_bound(scores, groups=np.repeat(np.arange(20), 3))
    np.testing.assert_array_equal(curve.threshold, np.sort(scores.reshape(20, 3).min(axis=1)))
