"""`Statistics`: equal to those of all rows at once, whatever the parts, their order and units."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.covariance import empirical_covariance

from skanomaly_vit.density._statistics import Kind, Statistics


@st.composite
def rows_in_parts(draw):
    """Rows, and where to cut them: any rank, units from 1e-100 to 1e100, offsets, constants."""
    n, d = draw(st.integers(2, 30)), draw(st.integers(1, 5))
    X = np.random.default_rng(draw(st.integers(0, 2**16))).normal(size=(n, d)) ** 3
    copied = draw(arrays(np.int64, d, elements=st.integers(0, d - 1)))
    units = draw(arrays(np.float64, d, elements=st.sampled_from([1e-100, 1e-8, 1.0, 1e8, 1e100])))
    offset = draw(arrays(np.float64, d, elements=st.sampled_from([0.0, 1.0, -1e3])))
    varies = draw(arrays(np.float64, d, elements=st.sampled_from([0.0, 1.0, 1.0])))
    X = (X[:, copied] * varies + offset) * units
    cuts = draw(st.lists(st.integers(0, n), max_size=6))
    return X, np.split(X, sorted(cuts))


def standardized(X: np.ndarray) -> np.ndarray:
    """As a batch does it, with 1 for the deviation of what rounding alone makes vary."""
    deviation = X.std(axis=0)
    constant = deviation <= len(X) * np.finfo(float).eps * np.abs(X.mean(axis=0))
    return (X - X.mean(axis=0)) / np.where(constant, np.inf, deviation)


def assert_same(a: Statistics, b: Statistics, rtol: float = 1e-9) -> None:
    assert (a.n_samples, a.kind) == (b.n_samples, b.kind)
    (mean, scale), (other_mean, other_scale) = a.location_and_scale(), b.location_and_scale()
    np.testing.assert_allclose(scale, other_scale, rtol=rtol)
    # In standard deviations, or in units of a constant.
    size = scale + np.abs(mean)
    np.testing.assert_allclose((mean - other_mean) / size, 0, atol=rtol)
    constant = a.square / a.n_samples < np.ldexp(1.0, -80)
    if a.kind >= Kind.COVARIANCE:
        np.testing.assert_allclose(a.covariance(scale), b.covariance(scale), atol=rtol)
    if a.kind >= Kind.SHRINKAGE:
        powers = [each.mean_fourth_power(scale, ~constant) for each in (a, b)]
        assert powers[0] == pytest.approx(powers[1], rel=rtol)


@settings(max_examples=200, deadline=None)
@given(rows_in_parts())
def test_parts_add_up_to_the_batch(drawn):
    X, parts = drawn
    found = Statistics.of_shards(parts)
    Z = standardized(X)
    mean, scale = found.location_and_scale()
    varies = Z.any(axis=0)
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-6, atol=1e-6 * X.std(axis=0).max())
    np.testing.assert_allclose(scale[varies], X.std(axis=0)[varies], rtol=1e-6)
    covariance = found.covariance(scale)[np.ix_(varies, varies)]
    expected = empirical_covariance(Z, assume_centered=True)[np.ix_(varies, varies)]
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    fourth = np.mean(np.sum(Z**2, axis=1) ** 2)
    assert found.mean_fourth_power(scale, varies) == pytest.approx(fourth, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(rows_in_parts(), st.randoms(use_true_random=False))
def test_neither_order_nor_grouping_matters(drawn, random):
    _, parts = drawn
    each = [Statistics.of(part) for part in parts]
    left = Statistics.of_shards(parts)
    right = each[-1]
    for statistics in each[-2::-1]:
        right = statistics + right
    assert_same(left, right)
    random.shuffle(each)
    assert_same(left, sum(each[1:], each[0]))


@pytest.mark.parametrize("kind", Kind)
def test_none_at_all_changes_nothing(rng, kind):
    rows = rng.normal(size=(9, 3))
    some, none = Statistics.of(rows, kind), Statistics.empty(3)
    for both in (some + none, none + some):
        assert both.kind == kind
        assert_same(both, some, rtol=0)


def test_the_lesser_kind_counts(rng):
    rows = rng.normal(size=(9, 3))
    both = Statistics.of(rows, Kind.SHRINKAGE) + Statistics.of(rows, Kind.VARIANCE)
    assert (both.kind, both.n_samples) == (Kind.VARIANCE, 18)
    with pytest.raises(ValueError, match="kind VARIANCE hold no covariance"):
        both.covariance()
    with pytest.raises(ValueError, match="kind COVARIANCE hold no fourth powers"):
        Statistics.of(rows, Kind.COVARIANCE).mean_fourth_power(np.ones(3), np.ones(3, bool))


def test_a_large_offset_costs_no_more_than_the_rows_have_lost(rng):
    X = rng.normal(size=(40_000, 3)) + 1e8
    found = Statistics.of_shards(np.split(X, 100))
    mean, scale = found.location_and_scale()
    exact = X - 1e8  # of numbers of this size, without rounding
    np.testing.assert_allclose(mean - 1e8, exact.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(scale, exact.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance(scale), np.corrcoef(exact.T), atol=1e-6)


def test_a_constant_stays_one_over_many_parts():
    found = Statistics.of_shards([np.full((7, 2), [0.1, -1e6 / 3])] * 1000)
    mean, scale = found.location_and_scale()
    np.testing.assert_array_equal(mean, [0.1, -1e6 / 3])
    np.testing.assert_array_equal(scale, 1)
    assert not found.covariance(scale).any()


def test_the_largest_values_do_not_overflow():
    found = Statistics.of_shards(
        np.split(np.array([[1e140, -1e140], [-1e140, 0.0], [1e140, 1e-140]]), 3)
    )
    mean, scale = found.location_and_scale()
    assert np.isfinite([*mean, *scale]).all()
    assert np.isfinite(found.covariance(scale)).all()
    assert found.mean_fourth_power(scale, np.ones(2, bool)) < 9


def test_projected_rows_have_the_projected_statistics(rng):
    X, axes = rng.normal(size=(50, 4)) * [1, 10, 0.1, 1] + 5, rng.normal(size=(4, 2))
    found = Statistics.of(X).projected(axes)
    expected = Statistics.of((X - X.mean(axis=0)) @ axes, Kind.COVARIANCE)
    assert_same(found, expected)


def test_their_size_does_not_grow_with_the_rows(rng):
    sizes = [len(pickle.dumps(Statistics.of(rng.normal(size=(n, 10))))) for n in (10, 1000)]
    assert abs(sizes[0] - sizes[1]) < 8
    assert sizes[1] < 3 * 8 * 10**2 + 4 * 8 * 10 + 1000


def test_a_pickle_is_the_same_to_the_bit(rng):
    found = Statistics.of(rng.normal(size=(30, 4)))
    loaded = pickle.loads(pickle.dumps(found))
    assert_same(loaded, found, rtol=0)
