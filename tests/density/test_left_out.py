"""`score_left_out`: the score of a training sample, had the fit left it out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import gammaln
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skanomaly_vit import (
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    WhitenedKNNDensity,
)

DENSITIES = [
    GaussianDensity(),
    GaussianDensity(shrinkage="ledoit_wolf"),
    GaussianDensity(shrinkage=0.0, regularization=1e-3),
    ExcessDensity(),
    KNNDensity(),
    KNNDensity(max_samples=10, random_state=0),
    KNNDensity(max_samples=8, subsampling="greedy", random_state=0),
    WhitenedKNNDensity(),
    WhitenedKNNDensity(n_neighbors=1, max_samples=10, random_state=0),
]
every_density = pytest.mark.parametrize("density", DENSITIES, ids=repr)


@pytest.fixture
def X(rng) -> np.ndarray:
    """(40, 6): correlated, in mixed units, one feature constant."""
    mixed = (rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 9) * np.logspace(-4, 4, 5)
    return np.column_stack([mixed, np.full(40, 0.1)])


def others(X):
    """Each sample, and all others."""
    return [(X[[i]], np.delete(X, i, axis=0)) for i in range(len(X))]


@pytest.mark.parametrize("n_samples", [2, 5, 40])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0, "ledoit_wolf"])
def test_gaussian_is_that_of_the_others(X, n_samples, shrinkage):
    """With mean and covariance of the others; units and the amount of shrinkage are fixed."""
    X = X[:n_samples]
    density = GaussianDensity(shrinkage=shrinkage, regularization=1e-2).fit(X)
    amount, Z = density.shrinkage_, (X - density.location_) / density.scale_
    varies = Z.any(axis=0)
    expected = []
    for z, rest in others(Z):
        covariance = (1 - amount) * np.cov(rest.T, bias=True)
        covariance += np.diag(amount * varies + 1e-2)
        normal = multivariate_normal(rest.mean(axis=0), covariance)
        expected.append(normal.logpdf(z[0]) - np.log(density.scale_).sum())
    np.testing.assert_allclose(density.score_left_out(X), expected, rtol=1e-9)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", 0.0])
def test_gaussian_left_out_predicts_new_scores(rng, shrinkage):
    """With few samples, scores in sample are far from those of new ones."""
    X = rng.normal(size=(2060, 30)) @ rng.normal(size=(30, 30))
    density = GaussianDensity(shrinkage=shrinkage).fit(X[:60])
    new, left_out = density.score_samples(X[60:]), density.score_left_out(X[:60])
    assert left_out.mean() == pytest.approx(new.mean(), abs=new.std() / 2)
    assert left_out.std() == pytest.approx(new.std(), rel=0.4)
    assert density.score_samples(X[:60]).std() < 0.6 * new.std()


@pytest.mark.parametrize("n_samples", [3, 40])
def test_excess_is_a_fit_to_the_others(X, n_samples):
    X = np.abs(X[:n_samples])
    expected = [ExcessDensity().fit(rest).score_samples(x)[0] for x, rest in others(X)]
    np.testing.assert_allclose(ExcessDensity().fit(X).score_left_out(X), expected, rtol=1e-9)


def test_excess_is_finite_where_the_others_are_equal():
    scores = ExcessDensity().fit([[1.0], [1.0], [4.0]]).score_left_out([[1.0], [4.0]])
    assert np.isfinite(scores).all()
    assert scores[1] < scores[0] - 1


@pytest.mark.parametrize("n_features", [2, 40])
@pytest.mark.parametrize("cls", [KNNDensity, WhitenedKNNDensity])
@pytest.mark.parametrize("n_neighbors", [1, 3])
def test_a_sample_is_no_neighbour_of_itself(rng, cls, n_neighbors, n_features):
    X = rng.normal(size=(50, n_features)) * np.logspace(-2, 2, n_features)
    density = cls(n_neighbors=n_neighbors).fit(X)
    points = (X - density.location_) / density.scale_
    constant = -np.log(density.scale_).sum()
    if cls is WhitenedKNNDensity:
        points = points @ density.whitening_
        constant += np.linalg.slogdet(density.whitening_)[1]
    distances = np.sort(cdist(points, points) + np.diag(np.full(50, np.inf)), axis=1)
    nearest = distances[:, :n_neighbors]
    radius = nearest.mean(axis=1) if cls is WhitenedKNNDensity else nearest[:, -1]
    log_ball = n_features / 2 * np.log(np.pi) - gammaln(n_features / 2 + 1)
    expected = np.log(n_neighbors / 49) - log_ball - n_features * np.log(radius) + constant
    np.testing.assert_allclose(density.score_left_out(X), expected, rtol=1e-9)


@pytest.mark.parametrize("cls", [KNNDensity, WhitenedKNNDensity])
def test_of_equal_samples_one_is_left_out(rng, cls):
    X = rng.normal(size=(30, 4))
    X[:3] = X[0]
    scores = cls(n_neighbors=2).fit(X).score_left_out(X)
    assert np.isfinite(scores).all()
    # Two copies remain as neighbours, at no distance.
    assert scores[:3].min() > scores[3:].max() + 10
    np.testing.assert_array_equal(scores[:3], scores[0])


@pytest.mark.parametrize("cls", [KNNDensity, WhitenedKNNDensity])
def test_as_many_neighbours_as_samples(rng, cls):
    X = rng.normal(size=(4, 2))
    density = cls(n_neighbors=4).fit(X)
    assert np.isfinite(density.score_left_out(X)).all()
    one_less = cls(n_neighbors=3).fit(X)
    np.testing.assert_allclose(density.score_left_out(X), one_less.score_left_out(X))


@pytest.mark.parametrize("cls", [KNNDensity, WhitenedKNNDensity])
def test_members_of_a_coreset_are_left_out_and_others_are_not(rng, cls):
    X = rng.normal(size=(60, 3))
    density = cls(n_neighbors=1, max_samples=20, random_state=0).fit(X)
    in_sample, left_out = density.score_samples(X), density.score_left_out(X)
    is_member = in_sample > in_sample.max() - 1  # at no distance
    assert is_member.sum() == 20
    assert (left_out[is_member] < in_sample[is_member] - 10).all()
    np.testing.assert_allclose(left_out[~is_member], in_sample[~is_member])


@pytest.mark.parametrize("cls", [KNNDensity, WhitenedKNNDensity])
def test_a_coreset_of_one_leaves_nothing(rng, cls):
    X = rng.normal(size=(9, 3))
    density = cls(n_neighbors=1, max_samples=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"searches one sample.*Pass max_samples >= 2"):
        density.score_left_out(X)


@every_density
def test_left_out_scores_are_lower(X, density):
    fitted = clone(density).fit(X)
    left_out = fitted.score_left_out(X)
    assert left_out.shape == (40,)
    assert left_out.dtype == np.float64
    assert np.isfinite(left_out).all()
    assert left_out.mean() < fitted.score_samples(X).mean()


@every_density
def test_batches_and_order_do_not_matter(X, density):
    fitted = clone(density).fit(X)
    expected = fitted.score_left_out(X)
    found = np.concatenate([fitted.score_left_out(part) for part in np.array_split(X[::-1], 3)])
    np.testing.assert_allclose(found[::-1], expected, rtol=1e-9)


@every_density
def test_updates_leave_all_samples_out(X, density):
    expected = clone(density).fit(X).score_left_out(X)
    updated = clone(density).fit(X[:20]).partial_fit(X[20:31]).partial_fit(X[31:])
    np.testing.assert_allclose(updated.score_left_out(X), expected, rtol=1e-6)


@every_density
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples_are_refused(X, density, bad):
    with pytest.raises(NotFittedError):
        clone(density).score_left_out(X)
    fitted = clone(density).fit(X)
    with pytest.raises(ValueError, match="features"):
        fitted.score_left_out(X[:, :3])
    X[1, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        fitted.score_left_out(X)


def test_a_mixture_cannot():
    assert not hasattr(GaussianMixtureDensity(), "score_left_out")
