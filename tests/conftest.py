"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from backbones import family

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone.teacher import Teacher


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


def blobs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bright discs on a grey ground, a little different each, shape (n, 32, 32, 3)."""
    y, x = np.mgrid[:32, :32]
    centre = rng.normal(16, 1.0, (n, 2, 1, 1))
    radius = np.hypot(y - centre[:, 0], x - centre[:, 1])
    disc = 60 + 150 / (1 + np.exp(radius - 8)) + rng.normal(0, 3, (n, 32, 32))
    return np.repeat(disc[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)


def meeting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, begun by two threads at once, or a little later if the other is held up."""
    barrier = threading.Barrier(2)

    def meet(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.2)
        return function(*args, **options)

    return meet


@pytest.fixture
def make_detector(tiny):
    """A detector on the tiny network, quick to fit; any parameter can be overridden."""

    def make(**parameters):
        quick = {"backbone": tiny, "n_blocks": 2, "max_epochs": 2, "random_state": 0}
        return TransformalyDetector(**quick | parameters)

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
