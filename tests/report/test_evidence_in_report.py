"""The chart of a line over time in a report."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from skanomaly_vit.report import write_report
from skanomaly_vit.report._calibration import Calibration
from skanomaly_vit.report._evidence import draw_evidence

RNG = np.random.default_rng(0)


def calibration(n=300, groups=None):
    scores = np.sort(RNG.normal(size=n))
    return Calibration(scores, groups, n, np.empty(0), None, None)


def test_a_line_without_a_change_is_said_to_have_none():
    found = draw_evidence(RNG.normal(size=200), calibration())
    assert found.verdict == (
        "No change was seen in 200 images. A line without a change ever gives an alarm with a "
        "probability of at most 1 %."
    )


def test_a_change_is_told_with_its_beginning():
    scores = np.concatenate([RNG.normal(size=100), RNG.normal(-1.5, 1, size=150)])
    verdict = draw_evidence(scores, calibration()).verdict
    alarm, since = map(int, re.findall(r"image (\d+)", verdict))
    assert verdict.startswith("The line has changed: alarm at image ")
    assert "scores are lower" in verdict
    assert 100 < alarm <= 200
    assert 80 < since <= alarm


def test_groups_count_once():
    groups = np.repeat(np.arange(100), 3)
    assert "No change" in draw_evidence(RNG.normal(size=50), calibration(groups=groups)).verdict


def test_the_report_holds_the_chart_if_the_images_are_in_order(fitted, mixed, target):
    write_report(fitted, mixed, path=target, n_maps=0, in_order=True)
    text = target.read_text(encoding="utf-8")
    section = re.search(r'<section id="line".*?</section>', text, re.S)[0]
    assert "The line over time" in section
    content = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", section)[1])
    with Image.open(io.BytesIO(content)) as chart:
        assert chart.size == (960, 384)
    write_report(fitted, mixed, path=target, n_maps=0)
    assert "The line over time" not in target.read_text(encoding="utf-8")


def test_without_images_that_calibrate_there_is_no_chart(mixed, target, detector):
    with pytest.raises(ValueError, match="in_order=True compares images with those that calibrate"):
        write_report(detector, mixed, path=target, n_maps=0, in_order=True)
    assert not target.exists()
