"""Fixtures of tests in several folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import family
from images import blobs
from students import with_student

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone.teacher import Teacher

# They hold no doctests, and several modules of one name cannot be collected.
collect_ignore_glob = ["*conftest.py"]


@pytest.fixture(scope="session")
def tiny() -> torch.nn.Module:
    """A three-block Vision Transformer for images of 32 x 32 pixels."""
    return family("class token")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    """Smooth, alike images of shape (20, 32, 32, 3): the normal ones."""
    return blobs(rng, 20)


@pytest.fixture
def odd_images(rng: np.random.Generator) -> np.ndarray:
    """Noise, shape (6, 32, 32, 3): plain anomalies."""
    return rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def make_detector(tiny):
    """A detector on the tiny network, quick to fit; any parameter can be overridden."""

    def make(**parameters):
        quick = {"backbone": tiny, "n_blocks": 2, "max_epochs": 2, "random_state": 0}
        return TransformalyDetector(**with_student(**quick | parameters))

    return make


@pytest.fixture
def fitted(make_detector, images) -> TransformalyDetector:
    return make_detector().fit(images)


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """How many images each pass of a teacher takes, as they happen."""
    taken: list[int] = []
    run = Teacher.__call__

    def counting(self, images, **options):
        taken.append(len(images))
        return run(self, images, **options)

    monkeypatch.setattr(Teacher, "__call__", counting)
    return taken
