"""OnlineFDR: its levels, its guarantee, states, and errors."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.stats import norm

from skanomaly_vit.calibration import certified_p_values
from skanomaly_vit.monitoring import OnlineFDR

MANY = np.where(np.random.default_rng(1).random(600) < 0.2, 1e-6, 0.3)


def spending(n):
    """Shares of the budget that the first n images get, from levels without any alarm."""
    online, shares = OnlineFDR(0.5), []
    for _ in range(n):
        shares.append(online.level_ / 0.25)
        online.update([1.0])
    return np.array(shares)


def test_levels_are_those_of_lord_plus_plus():
    q, shares = 0.2, spending(60)
    online = OnlineFDR(q)
    alarms = [3, 4, 20]
    levels = []
    for t in range(60):
        levels.append(online.level_)
        online.update([0.0 if t in alarms else 1.0])
    earned = [q / 2, q, q]
    expected = [
        q / 2 * shares[t]
        + sum(w * shares[t - at - 1] for w, at in zip(earned, alarms, strict=True) if at < t)
        for t in range(60)
    ]
    np.testing.assert_allclose(levels, expected, rtol=1e-12)


def test_the_budget_is_spent_once_and_in_falling_parts():
    shares = spending(20_000)
    assert (np.diff(shares) < 0).all()
    assert 0.9 < shares.sum() < 1


@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_few_of_the_flagged_images_are_normal(shift):
    """In most deployments: a calibration set each, and many images."""
    q, false_shares, n_found = 0.2, [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known, is_normal = rng.normal(size=2000), rng.random(1000) > 0.2
        scores = rng.normal(size=1000) - shift * ~is_normal
        flagged = OnlineFDR(q, horizon=5).update(certified_p_values(known, scores))
        false_shares.append((flagged & is_normal).sum() / max(flagged.sum(), 1))
        n_found += (flagged & ~is_normal).sum()
    error = np.std(false_shares) / np.sqrt(len(false_shares))
    assert np.mean(false_shares) <= q + 0.05 + 4 * error  # of 5 % of the sets, nothing is known
    assert n_found > 60 * 200 * (0.1 if shift == 3 else 0.6)


def test_decisions_do_not_depend_on_batches_or_stops():
    whole = OnlineFDR()
    flagged = whole.update(MANY)
    assert flagged.sum() == whole.n_flagged_ > 50
    parts, decisions = OnlineFDR(), []
    for part in np.array_split(MANY, 7):
        decisions.extend(parts.update(part))
        parts = OnlineFDR.from_dict(json.loads(json.dumps(parts.to_dict())))
        parts = pickle.loads(pickle.dumps(parts))
    np.testing.assert_array_equal(decisions, flagged)
    assert parts.to_dict() == whole.to_dict()
    assert len(json.dumps(whole.to_dict())) < 1000
    assert whole.update([]).shape == (0,)


@pytest.mark.parametrize(
    ("p_values", "message"),
    [([0.1, 1.1], "1.1 for image 1.*scores are no p-values"), ([np.nan], "NaN for image 0"),
     ([-0.1], "-0.1 for image 0"), ([[0.1]], r"shape \(1, 1\)")],
)  # fmt: skip
def test_values_that_are_no_p_values_are_refused_before_any_is_counted(p_values, message):
    online = OnlineFDR()
    with pytest.raises(ValueError, match=message):
        online.update(p_values)
    assert online.n_images_ == 0


@pytest.mark.parametrize("q", [0, 1, -0.1, np.nan])
def test_rates_out_of_range_are_refused(q):
    with pytest.raises(ValueError, match=r"q=.* is not in \(0, 1\)"):
        OnlineFDR(q)


@pytest.mark.parametrize("horizon", [0.5, np.inf, np.nan])
def test_horizons_out_of_range_are_refused(horizon):
    with pytest.raises(ValueError, match=r"horizon=.* is not a number of at least 1"):
        OnlineFDR(horizon=horizon)


@pytest.mark.parametrize("damage", [{"kind": "LineMonitor"}, {"levels": [1.0]}, {"q": None}])
def test_states_that_are_none_are_refused(damage):
    with pytest.raises(ValueError, match="state of OnlineFDR"):
        OnlineFDR.from_dict(OnlineFDR().to_dict() | damage)


def test_certified_p_values_hold_for_most_calibration_sets():
    n_failed = 0
    for seed in range(300):
        known = np.random.default_rng(seed).normal(size=60)
        # Just below each calibration score p-values jump; there they have to be large enough.
        p_values = certified_p_values(known, np.sort(known) - 1e-12, confidence=0.8)
        n_failed += (p_values < norm.cdf(np.sort(known))).any()
    assert 30 < n_failed < 95  # 60 expected; the bounds are exact


def test_certified_p_values_take_the_lowest_score_of_each_group():
    known, groups = np.arange(40.0), np.repeat(np.arange(10), 4)
    lowest = certified_p_values(known[::4], [-1, 5, 50])
    np.testing.assert_array_equal(certified_p_values(known, [-1, 5, 50], groups=groups), lowest)
    assert lowest[-1] == 1
