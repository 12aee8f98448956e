"""LineMonitor: its guarantee, changes, rates, groups, states, and errors."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from scipy.stats import beta, binom

from skanomaly_vit.calibration import conformal_p_values
from skanomaly_vit.exceptions import CalibrationWarning
from skanomaly_vit.monitoring import LineMonitor
from skanomaly_vit.monitoring._rates import rate_interval

KNOWN = np.random.default_rng(0).normal(size=200)


def line(seed, n, shift=0.0, spread=1.0):
    return np.random.default_rng([seed, n]).normal(shift, spread, n)


def most(n, rate):
    """A count that `n` cases at this rate exceed once in a million."""
    return binom.isf(1e-6, n, rate)


# --- the guarantee


@pytest.mark.parametrize("n_seen", [0, 1, 7, 40])
def test_on_average_an_image_adds_no_evidence(n_seen):
    """Exactly, over the places of the next image, at the odds that past images give."""
    n = 6
    places = np.random.default_rng(n_seen).integers(1, n + 2, n_seen)
    monitor = LineMonitor(n_calibration=n, anomaly_share=0.0, target_fpr=0.2)
    before = 10 ** monitor.update(p_values=places / (n + 1)).log10_evidence
    after = [evidence_after(monitor, place / (n + 1)) for place in range(1, n + 2)]
    odds = np.bincount(places, minlength=n + 2)[1:] + 1
    assert before != 1.0 or n_seen == 0
    np.testing.assert_allclose(np.average(after, weights=odds), before, rtol=1e-12)


def evidence_after(monitor, p_value):
    return 10 ** copy.deepcopy(monitor).update(p_values=[p_value]).log10_evidence


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_a_share_of_anomalies_adds_no_evidence(share):
    """However unlucky the calibration set, but for a tenth of the level."""
    n, level, tolerated = 39, 0.01, 0.05
    monitor = LineMonitor(n_calibration=n, anomaly_share=tolerated, level=level)
    before = 10 ** monitor.update(p_values=[1 / 40, 2 / 40, 9 / 40]).log10_evidence
    after = np.array([evidence_after(monitor, place / (n + 1)) for place in range(1, n + 2)])
    odds = np.ones(n - 1)
    odds[6] += 1
    highest = tolerated + (1 - tolerated) * beta.isf(level / 10, 2, n - 1)
    lowest_share = share * highest
    assert after[0] == after[1]
    mean = lowest_share * after[0] + (1 - lowest_share) * np.average(after[2:], weights=odds)
    assert mean <= before * (1 + 1e-12)
    if share == 1.0:
        np.testing.assert_allclose(mean, before, rtol=1e-12)


@pytest.mark.parametrize("n", [30, 200])
def test_alarms_on_lines_without_a_change_are_rare(n):
    """Each line has its own calibration set; one with anomalies is no change, either."""
    n_lines, n_alarms = 250, 0
    for seed in range(n_lines):
        rng = np.random.default_rng(seed)
        scores = rng.standard_t(3, 200)
        scores[rng.random(200) < 0.03] = -1e3
        monitor = LineMonitor(rng.standard_t(3, n), level=0.2)
        n_alarms += monitor.update(scores).changed
    assert n_alarms <= most(n_lines, 0.2)


def test_one_calibration_set_that_fell_low_is_no_change():
    """Its p-values are all large: a product of bets that takes them for independent would grow."""
    n_alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        known = rng.normal(size=10)
        p_values = conformal_p_values(known, rng.normal(size=600))
        monitor = LineMonitor(n_calibration=10, anomaly_share=0.0, level=0.2)
        n_alarms += monitor.update(p_values=p_values).changed
    assert n_alarms <= most(100, 0.2)


# --- changes


@pytest.mark.parametrize(
    ("shift", "spread", "direction", "within"),  # the lowest scores are compared if it spreads
    [
        (-1.2, 1, "lower", 120), (1.2, 1, "higher", 120), (-5, 1, "lower", 15),
        (5, 1, "higher", 25), (0, 2.0, "different", 150), (0, 0.3, "different", 150),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n_before", [0, 1000])
def test_changes_are_found_since_about_when_they_began(shift, spread, direction, within, n_before):
    monitor = LineMonitor(KNOWN, anomaly_share=0.05 if spread == 1 else 0.0)
    assert not monitor.update(line(1, n_before)).changed
    status = monitor.update(line(5, within, shift, spread))
    assert status.changed
    assert n_before <= status.alarm_at < n_before + within
    assert abs(status.since - n_before) <= 40
    assert status.direction == direction


def test_a_line_of_anomalies_alone_is_a_change():
    """Though none of them is compared."""
    assert LineMonitor(KNOWN).update(np.full(20, -1e3)).direction == "lower"


def test_an_alarm_stays_though_the_line_recovers():
    monitor = LineMonitor(KNOWN)
    found = monitor.update(line(1, 40, -4))
    later = monitor.update(line(2, 800))
    assert later.changed
    assert later.log10_evidence < found.log10_evidence
    assert (later.alarm_at, later.since) == (found.alarm_at, found.since)


def test_recalibration_begins_anew_and_images_keep_their_numbers():
    monitor = LineMonitor(KNOWN)
    monitor.update(line(1, 60, -4), groups=["left"] * 60)
    new = LineMonitor(KNOWN - 4)
    assert monitor.recalibrate(KNOWN - 4) is monitor
    assert (monitor.n_images_, monitor.calibrated_at_, monitor.groups_) == (60, 60, [])
    here, there = monitor.update(line(2, 100, -4)), new.update(line(2, 100, -4))
    assert not here.changed
    assert here.log10_evidence == there.log10_evidence
    assert here.rate_since == 60
    with pytest.raises(ValueError, match="NaN"):
        monitor.recalibrate([np.nan])
    assert monitor.status() == here


# --- scores and p-values


@pytest.mark.parametrize("n", [50, 999, 3000])
def test_scores_and_their_p_values_say_the_same(n):
    known, scores = line(1, n), line(2, 100, -0.5)
    by_scores = LineMonitor(known)
    by_p_values = LineMonitor(n_calibration=n)
    by_scores.update(scores)
    by_p_values.update(p_values=conformal_p_values(known, scores).astype(np.float32))
    assert by_p_values.status() == by_scores.status()


def test_equal_scores_are_told_apart_by_chance():
    """Whole numbers, which half of the time are equal, are no change."""
    n_alarms, numbers = 0, (line(3, 300) * 2).round()
    for seed in range(60):
        monitor = LineMonitor(np.random.default_rng(seed).permutation(numbers)[:100],
                              anomaly_share=0.0, level=0.2, random_state=seed)  # fmt: skip
        scores = np.random.default_rng(seed).permutation(numbers)[100:]
        n_alarms += monitor.update(scores).changed
    assert n_alarms <= most(60, 0.2)
    assert LineMonitor([0.0] * 100).update([0.0] * 300).changed is False


def test_infinite_scores_are_the_lowest():
    low, high = LineMonitor(KNOWN), LineMonitor(KNOWN)
    assert low.update([-np.inf] * 9) == high.update([-1e300] * 9)


# --- rates


def test_the_rate_counts_flagged_images_of_two_windows():
    monitor = LineMonitor(KNOWN, rate_window=50, target_fpr=0.1)
    scores = line(1, 170)
    status = monitor.update(scores)
    flagged = conformal_p_values(KNOWN, scores) <= 0.1
    assert status.rate == flagged[100:].mean()  # 70 images: one window, and what came since
    assert status.rate_since == 100
    assert status.rate_low < status.rate < status.rate_high


def test_images_at_the_target_are_flagged_by_scores_and_by_p_values():
    by_scores, by_p_values = LineMonitor(np.arange(19.0)), LineMonitor(n_calibration=19)
    assert by_scores.update([-1, 0.5, 3.5, 9.5]).rate == 0.25
    assert by_p_values.update(p_values=np.array([1, 2, 5, 11]) / 20).rate == 0.25


def test_the_interval_holds_at_all_times_for_the_mean_rate():
    n_missed, n_lines = 0, 200
    times = [1, 2, 5, 10, 20, 50, 100, 200, 400]
    rates = 0.05 + 0.1 * (np.arange(400) > 200)  # the rate itself may change
    for seed in range(n_lines):
        flagged = np.cumsum(np.random.default_rng(seed).random(400) < rates)
        intervals = [rate_interval(int(flagged[n - 1]), n, 0.8) for n in times]
        inside = [low <= rates[:n].mean() <= high
                  for n, (low, high) in zip(times, intervals, strict=True)]  # fmt: skip
        n_missed += not all(inside)
    assert n_missed <= most(n_lines, 0.2)


def test_the_interval_is_no_wider_than_it_has_to_be():
    for n_flagged, n in [(0, 300), (15, 300), (300, 300), (5000, 100_000)]:
        low, high = rate_interval(n_flagged, n, 0.95)
        assert low <= n_flagged / n <= high
        error = np.sqrt(max(n_flagged / n * (1 - n_flagged / n), 1 / n) / n)
        assert high - low < 12 * error
    assert rate_interval(0, 0, 0.95) == (0.0, 1.0)


# --- groups


def test_groups_are_watched_on_their_own():
    monitor = LineMonitor(KNOWN)
    cameras = np.tile([1, 2, 3, 4], 100)
    scores = np.where(cameras == 3, line(1, 400, -1.5), line(2, 400))
    monitor.update(scores, groups=cameras)
    assert monitor.groups_ == ["1", "2", "3", "4"]
    assert [monitor.status(camera).changed for camera in (1, 2, 3, 4)] == [0, 0, 1, 0]
    assert monitor.status(3).n_images == 100
    assert monitor.status("3").since % 4 == 2  # numbers are those of the line
    alone = LineMonitor(KNOWN).update(scores[cameras == 3])
    assert monitor.status(3).log10_evidence == alone.log10_evidence
    assert monitor.status().n_images == 400
    assert monitor.drop(3).groups_ == ["1", "2", "4"]
    with pytest.raises(ValueError, match=r"no group 3 among \['1', '2', '4'\]"):
        monitor.status(3)


# --- states


def states(monitor):
    return json.loads(json.dumps(monitor.to_dict()))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("again", [lambda m: LineMonitor.from_dict(states(m)),
                                   lambda m: pickle.loads(pickle.dumps(m))])  # fmt: skip
def test_a_monitor_that_stops_goes_on_as_if_it_had_not(again, ties):
    scores = np.concatenate([line(1, 700), line(2, 60, -3)])
    known = KNOWN.round(1) if ties else KNOWN
    scores = scores.round(1) if ties else scores
    groups = np.arange(len(scores)) % 3
    whole = LineMonitor(known, rate_window=300)
    whole.update(scores, groups=groups)
    parts = LineMonitor(known, rate_window=300)
    for part in np.array_split(np.arange(len(scores)), 9):
        parts.update(scores[part], groups=groups[part])
        parts = again(parts)
    assert states(parts) == states(whole)
    assert parts.status(1) == whole.status(1)
    assert parts.recalibrate(known).update(scores) == whole.recalibrate(known).update(scores)


def test_the_state_does_not_grow_with_images():
    monitor = LineMonitor(line(1, 5000))
    scores = line(2, 1500)
    monitor.update(scores)
    size = len(json.dumps(monitor.to_dict()))
    monitor.update(scores[::-1])
    assert len(json.dumps(monitor.to_dict())) < 1.1 * size < 70_000
    history = monitor.history()
    assert 200 < len(history.images) == len(history.log10_evidence) <= 512
    assert len(np.unique(np.diff(history.images))) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: None, "no state of LineMonitor"),
        (lambda state: state | {"kind": "OnlineFDR"}, "no state of LineMonitor"),
        (lambda state: {k: v for k, v in state.items() if k != "edges"}, "damaged.*edges"),
        (lambda state: state | {"n_calibration": 7}, "damaged.*reshape"),
        (lambda state: state | {"line": state["line"] | {"urn": [1]}}, "damaged.*reshape"),
        (lambda state: state | {"settings": {"level": 2}}, "damaged.*level=2"),
    ],
)
def test_states_that_are_none_are_refused(damage, message):
    with pytest.raises(ValueError, match=message):
        LineMonitor.from_dict(damage(LineMonitor(KNOWN).to_dict()))


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either scores or p_values"),
        ({"scores": [1.0], "p_values": [0.5]}, "either scores or p_values"),
        ({"scores": [1.0, np.nan]}, "scores hold NaN for image 1"),
        ({"scores": [[1.0]]}, r"scores have shape \(1, 1\)"),
        ({"p_values": [0.5, 1.5]}, r"p_values hold 1.5 for image 1.*\[0, 1\]"),
        ({"p_values": [-0.5]}, "p_values hold -0.5 for image 0"),
        ({"p_values": [np.nan]}, "p_values hold NaN"),
        ({"p_values": [0.0]}, "p-value 0 of image 0 is not one of 1/201"),
        ({"p_values": [0.5]}, "p-value 0.5 of image 0 is not one of 1/201"),
        ({"scores": [1.0], "groups": ["a", "b"]}, r"groups have shape \(2,\).*1 images"),
        ({"scores": [1.0, 2], "groups": ["a", None]}, "group of image 1 is missing"),
        ({"scores": [1.0, 2], "groups": [1.0, np.nan]}, "group of image 1 is missing"),
        ({"scores": [1.0], "first": 5}, "first=5, but the next image is number 10"),
        ({"scores": [1.0], "first": 12}, "none may be left out"),
    ],
)
def test_images_that_cannot_be_counted_are_refused_before_any_is(arguments, message):
    monitor = LineMonitor(KNOWN)
    monitor.update(line(1, 10), first=0)
    before = states(monitor)
    with pytest.raises(ValueError, match=message):
        monitor.update(**arguments)
    assert states(monitor) == before


def test_a_night_without_images_changes_nothing():
    monitor = LineMonitor(KNOWN)
    assert monitor.update([]) == monitor.status()
    assert monitor.status().rate is None
    assert monitor.status().rate_since is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "n_calibration=None; pass calibration_scores"),
        ({"n_calibration": 0}, "n_calibration=0"),
        ({"n_calibration": 2.5}, "n_calibration=2.5"),
        ({"calibration_scores": []}, "at least one normal image"),
        ({"calibration_scores": [np.inf, 1]}, "finite"),
        ({"calibration_scores": KNOWN, "n_calibration": 7}, "there are 200 calibration scores"),
        ({"calibration_scores": KNOWN, "level": 0}, "level=0 is not in"),
        ({"calibration_scores": KNOWN, "confidence": 1}, "confidence=1 is not in"),
        ({"calibration_scores": KNOWN, "target_fpr": 1.2}, "target_fpr=1.2 is not in"),
        ({"calibration_scores": KNOWN, "anomaly_share": 1}, "anomaly_share=1 is not in"),
        ({"calibration_scores": KNOWN, "rate_window": 0}, "rate_window=0 is not an integer"),
        ({"calibration_scores": KNOWN, "random_state": None}, "random_state=None is not"),
    ],
)
def test_monitors_that_could_not_watch_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LineMonitor(**arguments)


def test_scores_without_calibration_scores_are_refused():
    with pytest.raises(ValueError, match="scores need calibration scores"):
        LineMonitor(n_calibration=9).update([1.0])


def test_too_few_calibration_scores_for_the_flags_are_told():
    with pytest.warns(CalibrationWarning, match="too few for a false-alarm rate of 0.05"):
        LineMonitor([1.0, 2, 3], target_fpr=0.05)
