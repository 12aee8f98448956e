"""`WhitenedKNNDensity`: neighbours where every direction has the same variance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from scipy.spatial.distance import cdist
from scipy.special import gammaln
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors

from skanomaly_vit import GaussianDensity, KNNDensity, WhitenedKNNDensity


@pytest.fixture
def X(rng) -> np.ndarray:
    """(80, 6): correlated, in mixed units."""
    return (rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)) + 3) * np.logspace(-3, 3, 6)


@pytest.mark.parametrize("exponent", [0.5, 0.25, 0.0])
@pytest.mark.parametrize("n_neighbors", [1, 2, 7])
@pytest.mark.parametrize("n_train", [5, 70])
def test_scores_equal_the_formula(X, exponent, n_neighbors, n_train):
    n_neighbors = min(n_neighbors, n_train)
    train, test = X[:n_train], X[70:]
    mean, std = train.mean(axis=0), train.std(axis=0)
    covariance, shrinkage = ledoit_wolf((train - mean) / std)
    whitening = fractional_matrix_power(covariance + 1e-6 * np.eye(6), -exponent)
    u, v = (((rows - mean) / std) @ whitening for rows in (train, test))
    radius = np.sort(cdist(v, u), axis=1)[:, :n_neighbors].mean(axis=1)
    log_volume = 3 * np.log(np.pi) - gammaln(4) + 6 * np.log(radius) + np.log(std).sum()
    log_volume -= np.linalg.slogdet(whitening)[1]
    fitted = WhitenedKNNDensity(n_neighbors=n_neighbors, whitening_exponent=exponent).fit(train)
    expected = np.log(n_neighbors / n_train) - log_volume
    np.testing.assert_allclose(fitted.score_samples(test), expected, rtol=1e-9)
    np.testing.assert_allclose(fitted.whitening_, whitening, rtol=1e-7, atol=1e-9)
    assert fitted.shrinkage_ == pytest.approx(shrinkage)


def test_distances_are_mahalanobis_distances(X):
    """To one training sample, in the metric of the Gaussian."""
    gaussian = GaussianDensity(shrinkage="ledoit_wolf").fit(X)
    fitted = WhitenedKNNDensity(n_neighbors=1).fit(X)
    precision = np.linalg.inv(gaussian.covariance_)
    new = X[:1] + 30 * X.std(axis=0) * np.array([[1.0], [-2.0], [4.0]])
    nearest = cdist(new, X, "mahalanobis", VI=precision).min(axis=1)
    scores = fitted.score_samples(new)
    np.testing.assert_allclose(np.diff(scores), -6 * np.diff(np.log(nearest)), rtol=1e-6)


def test_without_whitening_one_neighbour_is_that_of_standardised_features(X):
    plain = KNNDensity(n_neighbors=1).fit(X[:70]).score_samples(X[70:])
    bare = WhitenedKNNDensity(n_neighbors=1, whitening_exponent=0.0).fit(X[:70])
    np.testing.assert_allclose(bare.score_samples(X[70:]), plain, rtol=1e-9)


def test_linear_maps_of_the_features_change_no_ranking(X, rng):
    mixed = X @ (np.diag(np.logspace(3, -3, 6)) @ rng.normal(size=(6, 6)))
    fits = [
        WhitenedKNNDensity(shrinkage=0.0, regularization=0.0).fit(each[:70]) for each in (X, mixed)
    ]
    first, second = (
        fit.score_samples(each[70:]) for fit, each in zip(fits, (X, mixed), strict=True)
    )
    np.testing.assert_allclose(first - first[0], second - second[0], atol=1e-6)


def test_fewer_samples_than_features_and_a_constant_one(rng):
    X = np.column_stack([rng.normal(size=(12, 40)), np.full(12, 0.1)])
    fitted = WhitenedKNNDensity().fit(X)
    assert 0 < fitted.shrinkage_ <= 1
    gaussian = GaussianDensity(shrinkage="ledoit_wolf").fit(X)
    assert fitted.shrinkage_ == gaussian.shrinkage_
    # A deviation of 1 from a constant counts as many standard deviations as in the Gaussian.
    moved = X[:1] + np.eye(41)[-1]
    points = fitted.whitening_ @ ((moved - fitted.location_) / fitted.scale_)[0]
    nearest = fitted.neighbors_.kneighbors(points[np.newaxis], 1)[0][0, 0]
    assert nearest == pytest.approx(1 / np.sqrt(1e-6), rel=1e-6)


@pytest.mark.parametrize("n_features", [3, 200])
def test_samples_and_duplicates_have_a_finite_score(rng, n_features):
    X = rng.normal(size=(30, n_features))
    X[10:20] = X[0]
    scores = WhitenedKNNDensity().fit(X).score_samples(X)
    assert np.isfinite(scores).all()
    copies = np.r_[0, 10:20]
    np.testing.assert_array_equal(scores[copies], scores.max())
    assert np.delete(scores, copies).max() < scores.max() - n_features


@pytest.mark.parametrize("size", [1, 3, 64, 65, 130])
def test_no_bit_of_a_score_depends_on_the_batch(rng, size):
    """In 200 features, scikit-learn searches by matrix products, which round by their shape."""
    X = rng.normal(size=(140, 200)) @ rng.normal(size=(200, 200))
    new = rng.normal(size=(140, 200)) @ rng.normal(size=(200, 200))
    fitted = WhitenedKNNDensity(n_jobs=2).fit(X)
    expected = fitted.score_samples(new)
    parts = [fitted.score_samples(new[i : i + size]) for i in range(0, 140, size)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    np.testing.assert_array_equal(WhitenedKNNDensity(n_jobs=1).fit(X).score_samples(new), expected)


def test_attributes_are_those_of_the_last_fit(X):
    fitted = WhitenedKNNDensity().fit(X)
    assert isinstance(fitted.neighbors_, NearestNeighbors)
    before = fitted.score_samples(X)
    fitted.set_params(n_neighbors=5, whitening_exponent=0.0, regularization=9.0)
    np.testing.assert_array_equal(fitted.score_samples(X), before)
    assert not hasattr(WhitenedKNNDensity(), "whitening_")
    assert not hasattr(WhitenedKNNDensity(), "shrinkage_")


def test_a_singular_covariance_needs_regularization(X):
    singular = np.column_stack([X, X[:, 0]])
    density = WhitenedKNNDensity(shrinkage=0.0, regularization=0.0)
    message = r"WhitenedKNNDensity found a singular covariance of 7 features.*larger regularization"
    with pytest.raises(ValueError, match=message):
        density.fit(singular)
