"""`ExcessDensity`: errors count where they exceed what is usual, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly_vit import ExcessDensity


@parametrize_with_checks([ExcessDensity()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def errors(rng) -> np.ndarray:
    return rng.gamma(9.0, [0.1, 30.0], (200, 2))


def test_it_is_a_density(errors):
    fitted = ExcessDensity().fit(errors[:, :1])
    total, _ = quad(lambda x: np.exp(fitted.score_samples([[x]])[0]), 0, 10, limit=200)
    assert total == pytest.approx(1, abs=1e-6)


def test_densities_of_features_multiply(errors):
    both = ExcessDensity().fit(errors).score_samples(errors)
    alone = [ExcessDensity().fit(errors[:, [j]]).score_samples(errors[:, [j]]) for j in (0, 1)]
    np.testing.assert_allclose(both, sum(alone))


def test_small_errors_are_as_normal_as_the_mean(errors):
    fitted = ExcessDensity().fit(errors)
    mean, deviation = errors.mean(axis=0), errors.std(axis=0)
    scores = fitted.score_samples([0 * mean, mean, mean + 2 * deviation])
    assert scores[0] == scores[1] == pytest.approx(scores[2] + 2 * 2**2 / 2)


def test_no_feature_makes_up_for_another(errors):
    fitted = ExcessDensity().fit(errors)
    mean, deviation = errors.mean(axis=0), errors.std(axis=0)
    large_and_small = mean + deviation * [3, -3]
    assert fitted.score_samples([large_and_small]) == pytest.approx(
        fitted.score_samples([mean + deviation * [3, 0]])
    )


def test_units_move_all_scores_alike(errors):
    first = ExcessDensity().fit(errors).score_samples(errors)
    second = ExcessDensity().fit(errors * [10, 100]).score_samples(errors * [10, 100])
    np.testing.assert_allclose(first - second, np.log(1000))


def test_a_feature_that_never_varied_counts_beyond_its_value():
    fitted = ExcessDensity().fit([[1.0], [1.0]])
    assert np.diff(fitted.score_samples([[1.0], [0.5], [2.0]])) == pytest.approx([0, -0.5])
