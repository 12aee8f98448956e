"""The card of a fitted detector in a notebook."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from images import blobs
from sklearn import config_context
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector


@pytest.fixture(scope="module")
def detector():
    images = blobs(np.random.default_rng(0), 24)
    return TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(images)


def test_a_fitted_detector_says_what_it_learned(detector):
    card = detector._repr_html_()
    for text in (
        "24 images, 5 of them held out",
        "embedded in float32, which sees 56 x 56 pixels",
        "pooled, pooled:-2, max_patch, max_patch:-2 and 2 students",
        f"{detector.offset_:.4g}; a lower score is an anomaly",
        "16.7 % of normal images, on average over deployments; 5 % takes more held-out images",
        "5 held-out images; at most",
    ):
        assert text in card
    assert card.index("learned from") < card.index("<details><summary>Parameters")
    assert detector._repr_mimebundle_()["text/html"].startswith('<div style="border')


def test_the_histogram_counts_the_held_out_images(detector):
    card = detector._repr_html_()
    drawing = ET.fromstring(card[card.index("<svg") : card.index("</svg>") + 6])
    bars = drawing.findall("g/rect")
    assert 1 <= len(bars) <= 5
    assert max(float(bar.get("height")) for bar in bars) == 70
    assert "Scores of 5 held-out normal images" in drawing.get("aria-label")
    line = drawing.find("line")
    assert 0 <= float(line.get("x1")) <= 320


def test_parameters_alone_before_the_fit(detector):
    assert "learned from" not in clone(detector)._repr_html_()
    with config_context(display="text"):
        assert not hasattr(detector, "_repr_html_")
        assert detector._repr_mimebundle_() == {"text/plain": repr(detector)}


def test_no_histogram_without_held_out_images(detector):
    images = blobs(np.random.default_rng(0), 24)
    fitted = clone(detector).set_params(validation_fraction=0.0).fit(images)
    card = fitted._repr_html_()
    assert "<svg role" not in card
    assert "no held-out images, so there is no bound" in card


def test_a_card_loads_no_backbone(detector, tmp_path):
    detector.save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    assert loaded.features_._teacher is None
    assert "<td style" in loaded._repr_html_()
    assert loaded.features_._teacher is None


def test_names_are_text_and_no_markup(detector):
    fitted = clone(detector).set_params(n_blocks=1).fit(blobs(np.random.default_rng(0), 24))
    fitted.backbone = "<script>"
    assert "<script> in float32, which" not in fitted._repr_html_()
    assert "&lt;script&gt; in float32, which" in fitted._repr_html_()
