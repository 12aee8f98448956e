"""Pickles name the versions that made them, and say what differs where something is missing."""

from __future__ import annotations

import copy
import pickle
from importlib.metadata import version

import numpy as np
import pytest
from sklearn.base import clone

from skanomaly_vit import BlockDistillation, TransformalyDetector, ViTFeatures

IMAGES = np.random.default_rng(0).integers(100, 156, (20, 32, 32, 3), dtype=np.uint8)
OPTIONS = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "random_state": 0}


@pytest.fixture(scope="module")
def detector():
    return TransformalyDetector(**OPTIONS, n_blocks=1).fit(IMAGES)


def pickled_by(versions, estimator):
    """An estimator as it comes from a pickle of other versions; None: from one that names none."""
    state = estimator.__getstate__() | {"_versions": versions}
    if versions is None:
        del state["_versions"]
    loaded = type(estimator).__new__(type(estimator))
    loaded.__setstate__(state)
    return loaded


@pytest.mark.parametrize("make", [ViTFeatures, BlockDistillation, TransformalyDetector])
def test_a_pickle_names_the_versions_that_made_it(make):
    found = make(**OPTIONS).__getstate__()["_versions"]
    for package in ("torch", "timm", "scikit-learn", "numpy", "skanomaly-vit"):
        assert found[package]
    assert found["torch"] == version("torch")


def test_what_an_older_pickle_lacks_is_told_with_both_versions(detector):
    here = detector.__getstate__()["_versions"]
    old = pickled_by(here | {"skanomaly-vit": "0.0.1", "timm": "0.9.0"}, detector)
    del old._fit_summary
    with pytest.raises(AttributeError) as caught:
        old.partial_fit(IMAGES)
    message = str(caught.value)
    assert "no attribute '_fit_summary'" in message
    assert "from a pickle of skanomaly-vit 0.0.1, timm 0.9.0; this is" in message
    assert f"timm {version('timm')}" in message
    assert f"skanomaly-vit {here['skanomaly-vit']}" in message
    assert "torch" not in message  # the same in both


def test_a_pickle_without_versions_is_told_as_such(detector):
    old = pickled_by(None, detector)
    del old._fit_summary
    with pytest.raises(AttributeError, match="a version of skanomaly-vit that pickles do not name"):
        old.partial_fit(IMAGES)


def test_a_pickle_of_the_same_versions_that_lacks_something_names_them(detector):
    loaded = pickle.loads(pickle.dumps(detector))
    del loaded._fit_summary
    with pytest.raises(AttributeError, match=r"from a pickle of skanomaly-vit \S+; this is"):
        loaded.partial_fit(IMAGES)


def test_pickles_clones_and_copies_are_as_before(detector):
    loaded = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(loaded.score_samples(IMAGES), detector.score_samples(IMAGES))
    assert loaded.__getstate__().keys() == detector.__getstate__().keys()
    for other in (loaded, copy.deepcopy(loaded), clone(loaded)):
        assert not hasattr(other, "nonsense_")
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            other.nonsense  # noqa: B018
