"""Calibration: p-values, thresholds, batches and drift, from scores alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp

from skanomaly_vit.calibration import (
    CalibrationWarning,
    benjamini_hochberg,
    conformal_p_values,
    conformal_threshold,
    drift_test,
)

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
        assert (found.p_value, found.statistic) == (expected.pvalue, expected.statistic)
        assert found.n_compared == 20

    def test_with_nothing_to_compare_says_so(self):
        with pytest.warns(CalibrationWarning, match="0 of 2 images"):
            assert drift_test(range(100), [-5, -6]).p_value == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drift_test(range(100), [-5, 50])

    @pytest.mark.parametrize("share", [-0.1, 1])
    def test_refuses_a_share_out_of_range(self, share):
        with pytest.raises(ValueError, match="anomaly_share"):
            drift_test([1.0], [1.0], anomaly_share=share)
