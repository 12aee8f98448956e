"""Warnings name the line of the user's program."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from images import blobs
from PIL import Image
from sklearn.pipeline import make_pipeline

import skanomaly_vit
from skanomaly_vit import DiskCache, TransformalyDetector
from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.datasets import read_mask
from skanomaly_vit.exceptions import (
    AmbiguousImageWarning,
    CacheWarning,
    CalibrationWarning,
    LabelWarning,
    ThresholdWarning,
    UnreadableImageWarning,
)

SMALL = {"image_size": 56, "n_blocks": 1, "random_state": 0}


@pytest.fixture(scope="module")
def images():
    return blobs(np.random.default_rng(0), 24)


def fit(images, tmp_path, **options):
    return TransformalyDetector(**SMALL | options).fit(images)


def too_few(images, tmp_path):
    conformal_threshold([1.0, 2.0], 0.01)


def anomalies_among_the_labels(images, tmp_path):
    TransformalyDetector(**SMALL).fit(images, np.repeat([1, -1], 12))


def in_a_pipeline(images, tmp_path):
    make_pipeline(TransformalyDetector(**SMALL)).fit(images, np.repeat([1, -1], 12))


def update(images, tmp_path):
    fitted = fit(images, tmp_path, validation_fraction=0.5, contamination=0.2)
    fitted.partial_fit(images[:4], [1, 1, 1, -1])


def another_rate(images, tmp_path):
    fitted = fit(images, tmp_path, contamination=0.2).set_params(contamination=0.1)
    fitted.predict(images[:1])


def unreadable(images, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    fitted = fit(images, tmp_path, contamination=0.2, on_error="nan")
    fitted.score_samples([tmp_path / "a.png"])


def ambiguous(images, tmp_path):
    disc = 255 * (np.hypot(*np.mgrid[-16:16, -16:16]) < 9)
    Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "mask.jpg", quality=50)
    read_mask(tmp_path / "mask.jpg")


def damaged_cache(images, tmp_path):
    (tmp_path / "cache.sqlite").write_bytes(b"no database" * 100)
    fit(images, tmp_path, contamination=0.2, memory=DiskCache(tmp_path))


@pytest.mark.parametrize(
    ("do", "category"),
    [
        (too_few, CalibrationWarning),
        (fit, CalibrationWarning),
        (anomalies_among_the_labels, LabelWarning),
        (in_a_pipeline, LabelWarning),
        (update, LabelWarning),
        (another_rate, ThresholdWarning),
        (unreadable, UnreadableImageWarning),
        (ambiguous, AmbiguousImageWarning),
        (damaged_cache, CacheWarning),
    ],
)
def test_a_warning_is_at_the_line_that_called_the_package(do, category, images, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        do(images, tmp_path)
    places = {each.filename for each in caught if each.category is category}
    assert places == {__file__}


def test_only_one_place_counts_the_depth_of_a_warning():
    package = Path(skanomaly_vit.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "stacklevel=" in path.read_text() and path.name != "exceptions.py"
    ]
    assert found == ["_utils/user_warnings.py"]
