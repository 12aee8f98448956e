"""`partial_fit` of the densities: what a fit to all samples gives, in whatever parts they come."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf_shrinkage

from skanomaly_vit import (
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    WhitenedKNNDensity,
)
from skanomaly_vit.density._coreset import N_PROJECTED, greedy_k_center
from skanomaly_vit.density._row_sample import RowSample

DENSITIES = [
    GaussianDensity(),
    GaussianDensity(shrinkage="ledoit_wolf"),
    GaussianDensity(shrinkage=0.0),
    ExcessDensity(),
    KNNDensity(),
    KNNDensity(max_samples=20, random_state=0),
    KNNDensity(max_samples=8, subsampling="greedy", random_state=0),
    WhitenedKNNDensity(),
    WhitenedKNNDensity(max_samples=20, shrinkage="auto", random_state=0),
    WhitenedKNNDensity(max_samples=8, subsampling="greedy", random_state=0),
]
every_density = pytest.mark.parametrize("density", DENSITIES, ids=repr)


@pytest.fixture
def X(rng) -> np.ndarray:
    """(150, 12): correlated, badly scaled, far from 0, one of them constant."""
    mixed = rng.normal(size=(150, 11)) @ rng.normal(size=(11, 11))
    X = (mixed + 50) * np.logspace(-6, 6, 11)
    return np.column_stack([X, np.full(150, 0.1)])


def in_parts(density, parts):
    fitted = clone(density)
    for part in parts:
        fitted.partial_fit(part)
    return fitted


@every_density
@pytest.mark.parametrize("cuts", [[75], [30, 31], [100, 140, 149]], ids=str)
def test_parts_give_the_density_of_all_in_any_order(density, X, cuts):
    expected = clone(density).fit(X).score_samples(X)
    first, *others = np.split(X, cuts)
    for parts in ([first, *others], [first, *others[::-1]], [*others, first]):
        if len(parts[0]) < density.get_params().get("n_neighbors", 2):
            continue
        scores = in_parts(density, parts).score_samples(X)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 60), d=st.integers(2, 30))
def test_shrinkage_is_that_of_scikit_learn(seed, n, d):
    X = np.random.default_rng(seed).normal(size=(n, d)) ** 3
    X *= np.random.default_rng(seed).choice([1e-8, 1.0, 1e8], d)
    density = GaussianDensity(shrinkage="ledoit_wolf")
    expected = ledoit_wolf_shrinkage((X - X.mean(0)) / X.std(0), assume_centered=True)
    assert density.fit(X).shrinkage_ == pytest.approx(max(expected, 0), rel=1e-6, abs=1e-9)
    parts = in_parts(density, [X[: n // 2 + 1], X[n // 2 + 1 :]][: 2 if n > 2 else 1])
    assert parts.shrinkage_ == pytest.approx(max(expected, 0), rel=1e-6, abs=1e-9)


def test_shrinkage_ends_where_samples_are_enough(rng):
    density = GaussianDensity().fit(rng.normal(size=(19, 4)))
    assert density.shrinkage_ > 0
    assert density.partial_fit(rng.normal(size=(1, 4))).shrinkage_ == 0


@every_density
def test_a_failed_update_leaves_the_density_as_it_was(density, X):
    fitted = clone(density).fit(X)
    before = fitted.score_samples(X)
    for bad in (X[:3] * np.nan, X[:3, :5], X[:3] * 1e200, X[:0]):
        with pytest.raises(ValueError, match=r"NaN|features|infinity|in a larger unit|0 sample"):
            fitted.partial_fit(bad)
    np.testing.assert_array_equal(fitted.score_samples(X), before)


@every_density
def test_a_pickle_goes_on_where_it_was(density, X):
    fitted = clone(density).fit(X[:100])
    loaded = pickle.loads(pickle.dumps(fitted)).partial_fit(X[100:])
    expected = fitted.partial_fit(X[100:]).score_samples(X)
    np.testing.assert_array_equal(loaded.score_samples(X), expected)


def test_mixtures_cannot():
    assert not hasattr(GaussianMixtureDensity(), "partial_fit")


@pytest.mark.parametrize(
    ("density", "changed", "message"),
    [
        (GaussianDensity(shrinkage=0.0), {"shrinkage": "ledoit_wolf"}, "another shrinkage"),
        (KNNDensity(), {"max_samples": 20}, "max_samples or subsampling"),
        (KNNDensity(max_samples=9), {"subsampling": "greedy"}, "max_samples or subsampling"),
        (WhitenedKNNDensity(), {"max_samples": 20}, "max_samples or subsampling"),
        (WhitenedKNNDensity(shrinkage=0.1), {"shrinkage": "ledoit_wolf"}, "another shrinkage"),
    ],
    ids=repr,
)
def test_parameters_that_ask_for_more_than_is_known_are_refused(density, changed, message, X):
    fitted = clone(density).fit(X).set_params(**changed)
    with pytest.raises(ValueError, match=rf"{message}.*Fit again"):
        fitted.partial_fit(X)


# --- coresets


@pytest.mark.parametrize("subsampling", ["random", "greedy"])
def test_a_coreset_is_made_of_samples_and_bounded(rng, subsampling):
    X = rng.normal(size=(500, 3))
    density = KNNDensity(max_samples=40, subsampling=subsampling, random_state=0).fit(X)
    assert density.neighbors_.n_samples_fit_ == 40
    samples = density.neighbors_._fit_X * density.scale_ + density.location_
    nearest = cdist(samples, X).argmin(axis=1)
    np.testing.assert_allclose(samples, X[nearest])
    assert len(set(nearest)) == 40
    # Units are those of all samples.
    np.testing.assert_allclose(density.location_, X.mean(axis=0), atol=1e-12)


def test_a_greedy_coreset_reaches_everywhere(rng):
    X = rng.normal(size=(400, 2))
    reach = {}
    for subsampling in ("random", "greedy"):
        density = KNNDensity(max_samples=40, subsampling=subsampling, random_state=0).fit(X)
        Z = (X - density.location_) / density.scale_
        reach[subsampling] = cdist(Z, density.neighbors_._fit_X).min(axis=1).max()
    assert reach["greedy"] < 0.6 * reach["random"]


def test_a_random_coreset_estimates_the_same_density(rng):
    X = rng.normal(size=(20_000, 1))
    few = KNNDensity(n_neighbors=50, max_samples=1000, random_state=0).fit(X)
    grid = np.linspace(-1.5, 1.5, 31)[:, np.newaxis]
    truth = -0.5 * grid[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(few.score_samples(grid), truth, atol=0.4)


def test_another_seed_draws_another_coreset(rng):
    X = rng.normal(size=(100, 2))
    drawn = [
        KNNDensity(max_samples=10, random_state=seed).fit(X).neighbors_._fit_X for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_more_neighbours_than_a_coreset_has_are_refused(X):
    with pytest.raises(ValueError, match=r"n_neighbors=5 but n_samples=3"):
        KNNDensity(max_samples=3).fit(X)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 12), st.lists(st.integers(0, 40), max_size=4))
def test_a_sample_of_parts_is_that_of_the_whole(seed, limit, cuts):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 3, (40, 2)) * rng.choice([-1.0, 1.0], (40, 1))
    whole = RowSample.of(rows, limit, b"salt")
    parts = np.split(rng.permutation(rows), sorted(cuts))
    merged = RowSample.of_shards(parts, limit, b"salt")
    np.testing.assert_array_equal(merged.rows, whole.rows)
    assert len(whole) == limit


def test_a_sample_is_drawn_evenly(rng):
    rows = np.arange(3000.0)[:, np.newaxis]
    drawn = RowSample.of_shards(np.split(rows, 30), 1000, b"salt").rows[:, 0]
    # Of each third 333.3, with a deviation of 12.2.
    assert np.abs(np.histogram(drawn, 3, (0, 3000))[0] - 1000 / 3).max() < 4 * 12.2


@pytest.mark.parametrize("n_features", [2, N_PROJECTED + 40])
def test_chosen_rows_are_all_different_though_rows_are_the_same(n_features):
    rows = np.repeat([[0.0], [1.0]], 6, axis=0) * np.ones(n_features)
    chosen = greedy_k_center(rows, 8, 0)
    assert len(set(chosen.tolist())) == 8
    assert {0, 1} == set(rows[chosen[:2], 0])
