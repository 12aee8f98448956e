"""Scores do not depend on what the process has set, and no setting is changed for others."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from backbones import family
from PIL import Image
from sklearn.base import clone
from students import with_student

from skanomaly_vit import (
    CompactFeatures,
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    TransformalyDetector,
    ViTFeatures,
    WhitenedKNNDensity,
)
from skanomaly_vit._images.decoding import decode_image
from skanomaly_vit._images.pillow_rules import own_rules
from skanomaly_vit.exceptions import CalibrationWarning


@contextmanager
def setting(change: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


def set_mkldnn(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "default dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: torch.device("meta"),
    "matmul precision": lambda: setting(
        torch.set_float32_matmul_precision, "medium", "highest"
    ),
    "matmul precision of one library": lambda: setting(set_mkldnn, "bf16", "ieee"),
    "pandas": lambda: sklearn.config_context(transform_output="pandas"),
    "errors of numpy": lambda: np.errstate(all="raise"),
    "warnings as errors": warnings.catch_warnings,
}  # fmt: skip


@contextmanager
def set_in_process(name: str) -> Iterator[None]:
    with SETTINGS[name]():
        if name == "warnings as errors":
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", CalibrationWarning)  # of few images
        yield


def state() -> tuple[Any, ...]:
    return (
        torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.get_default_device(), torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_num_threads(), sklearn.get_config(), np.geterr(), list(warnings.filters),
    )  # fmt: skip


@pytest.fixture(params=SETTINGS)
def process(request) -> Callable[[], AbstractContextManager[None]]:
    return lambda: set_in_process(request.param)


def detector_of(**parameters: Any) -> TransformalyDetector:
    quick = {"backbone": family("class token"), "n_blocks": 2, "random_state": 0}
    return TransformalyDetector(**with_student(**quick | parameters))


@pytest.fixture(scope="module")
def fits() -> dict[str, dict[str, Any]]:
    return {
        "default": {"contamination": 0.3},
        "paper": {"contamination": 0.4, "recipe": "paper", "max_epochs": 2},
    }


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_scores_and_maps_are_those_of_a_process_that_sets_nothing(process, fits, recipe, images):
    detector = detector_of(**fits[recipe]).fit(images)
    expected, maps = detector.score_samples(images, return_map=True)
    with process():
        before = state()
        got, got_maps = detector.score_samples(images, return_map=True)
        streamed = [image.score for image in detector.iter_scores(images)]
        only_maps = detector.anomaly_map(images)
        assert state() == before
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(streamed, expected)
    np.testing.assert_array_equal(got_maps, maps)
    np.testing.assert_array_equal(only_maps, maps)


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_fit_is_that_of_a_process_that_sets_nothing(process, fits, recipe, images):
    expected = detector_of(**fits[recipe]).fit(images)
    detector = detector_of(**fits[recipe])
    with process():
        before = state()
        detector.fit(images)
        assert state() == before
    np.testing.assert_array_equal(detector.score_samples(images), expected.score_samples(images))
    assert detector.offset_ == expected.offset_


def test_a_backbone_is_that_of_a_process_that_sets_nothing(process, images):
    by_name = {"backbone": "skanomaly_tiny", "pretrained": False, "random_state": 0}
    expected = ViTFeatures(**by_name).fit(images)
    with process():
        found = ViTFeatures(**by_name).fit(images)
    assert found.backbone_fingerprint_ == expected.backbone_fingerprint_


def test_tuned_features_are_those_of_a_process_that_sets_nothing(process, images):
    expected, tuned = (
        CompactFeatures(
            backbone=family("class token"), max_epochs=2, validation_fraction=0, random_state=0
        )
        for _ in range(2)
    )
    features = expected.fit(images).transform(images)
    with process():
        got = np.asarray(tuned.fit(images).transform(images))
    np.testing.assert_array_equal(got, features)


@pytest.mark.parametrize(
    "density",
    [
        GaussianDensity(),
        GaussianMixtureDensity(random_state=0),
        KNNDensity(),
        ExcessDensity(),
        WhitenedKNNDensity(),
    ],
)
def test_densities_are_those_of_a_process_that_sets_nothing(process, density, rng):
    X = rng.normal(size=(40, 3))
    expected = clone(density).fit(X).score_samples(X * 1e3)
    with process():
        got = clone(density).fit(X).score_samples(X * 1e3)
    np.testing.assert_array_equal(got, expected)


def test_between_two_scores_of_a_stream_the_settings_are_the_callers(process, images):
    stream = detector_of(contamination=0.3).fit(images).iter_scores(images)
    with process():
        before = state()
        for _ in stream:
            assert state() == before


def test_other_threads_get_back_what_they_had(images):
    """The dtype and the precision are the process's: the last of us gives them back."""
    detector = detector_of(contamination=0.3).fit(images)
    expected, found = detector.score_samples(images), []
    with set_in_process("default dtype"), set_in_process("matmul precision"):
        threads = [
            threading.Thread(target=lambda: found.append(detector.score_samples(images)))
            for _ in range(3)
        ]
        before = state()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state() == before
    for scores in found:
        np.testing.assert_array_equal(scores, expected)
    assert len(found) == 3


#: As a server does that loads its model before it forks its workers.
_PRELOAD = """
import multiprocessing, queue, warnings
import numpy as np, torch
from skanomaly_vit import TransformalyDetector

warnings.simplefilter("ignore")
torch.set_num_threads(2)
X = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
detector = TransformalyDetector(
    backbone="test_vit", pretrained=False, n_blocks=2, random_state=0
).fit(X)
expected = detector.score_samples(X[:32])

def work(answers):
    answers.put(detector.score_samples(X[:32]))
    answers.put(detector.fit(X).score_samples(X[:32]))

context = multiprocessing.get_context("fork")
answers = context.Queue()
child = context.Process(target=work, args=(answers,))
child.start()
try:
    print([np.abs(answers.get(timeout=60) - expected).max() / expected.std() for _ in range(2)])
except queue.Empty:
    print("no answer")
    child.kill()
child.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_scores_with_a_detector_that_has_worked_before():
    done = subprocess.run(
        [sys.executable, "-c", _PRELOAD], capture_output=True, text=True, check=True, timeout=300
    )
    scored, fitted = eval(done.stdout)
    assert scored < 1e-4
    assert fitted < 1e-4


def test_decoding_does_not_make_python_forget_which_warnings_it_has_shown(images):
    """`warnings.catch_warnings` would, in every module of the process."""
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "PNG")
    registry: dict[Any, Any] = {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn_explicit("the user's", UserWarning, "user.py", 1, registry=registry)
            decode_image(file.getvalue())
    assert len(seen) == 1


def test_warnings_of_pillow_are_ignored_only_where_we_decode():
    def of_pillow(name: str = "PIL.TiffImagePlugin") -> None:
        warnings.warn_explicit("odd", UserWarning, "TiffImagePlugin.py", 1, module=name)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        with own_rules(None, in_parts=False):
            of_pillow()
            with pytest.raises(UserWarning):
                of_pillow("another")
            with ThreadPoolExecutor(1) as pool, pytest.raises(UserWarning):
                pool.submit(of_pillow).result()
        with pytest.raises(UserWarning):
            of_pillow()
        assert warnings.filters == filters


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_limits_of_pillow_stay_while_an_image_is_decoded(kind, images, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    seen, load = [], Image.Image.load

    def looking(self: Image.Image) -> Any:
        seen.append(Image.MAX_IMAGE_PIXELS)
        return load(self)

    monkeypatch.setattr(Image.Image, "load", looking)
    assert decode_image(file.getvalue(), None).shape == (32, 32, 3)
    assert set(seen) == {100}
