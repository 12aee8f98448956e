"""Prefetching: the same bits and errors, a bounded number of images, no thread left."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from images import blobs
from PIL import Image

from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.prefetching import BATCHES_AHEAD, Reader, batches_ahead, count_threads
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit.exceptions import UnreadableImageError, UnreadableImageWarning

IMAGES = blobs(np.random.default_rng(0), 20)
PREPROCESSING = Preprocessing((24, 40), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("skanomaly-reader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not readers()
    yield
    assert not readers()


@pytest.fixture
def ahead(monkeypatch):
    """The CPU is treated as if it were another device."""
    monkeypatch.setattr(_passes, "batches_ahead", lambda device: BATCHES_AHEAD)


class Positions(list):
    """A list that threads append to and wait for."""

    def __init__(self):
        super().__init__()
        self._grown = threading.Condition()

    def append(self, position):
        with self._grown:
            super().append(position)
            self._grown.notify_all()

    def wait_for(self, n):
        with self._grown:
            assert self._grown.wait_for(lambda: len(self) >= n, timeout=300)


@pytest.fixture
def loaded(monkeypatch):
    """Positions of images, in the order in which they begin to be decoded."""
    begun = Positions()
    try_load = ImageSource.try_load

    def noting(self, position, function):
        begun.append(position)
        return try_load(self, position, function)

    monkeypatch.setattr(ImageSource, "try_load", noting)
    return begun


def reader(X=IMAGES, n_ahead=8, n_jobs=None, **options):
    return Reader(open_images(X, **options), PREPROCESSING, n_jobs=n_jobs, n_ahead=n_ahead)


def broken(tmp_path, bad=(3, 9, 10, 19)):
    """Paths of images, and of a few files without an image."""
    paths = []
    for index, image in enumerate(IMAGES):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image).save(paths[-1])
    for index in bad:
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    return paths


@pytest.mark.parametrize("n_jobs", [None, 3, -1])
def test_no_bit_depends_on_images_read_ahead(n_jobs):
    source = open_images(IMAGES)
    reading = reader(n_jobs=n_jobs)
    for start in range(0, 20, 5):
        reading.expect(range(start + 5, min(start + 13, 20)))
        found = reading.load(range(start, start + 5))
        assert torch.equal(found, source.load(range(start, start + 5), PREPROCESSING))
    reading.close()


def test_no_more_is_read_ahead_than_was_expected(loaded):
    reading = reader(n_jobs=1)
    reading.expect([2, 3])
    reading.load([0, 1])
    loaded.wait_for(4)
    reading.expect([4, 5])
    reading.load([2, 3])
    reading.expect([])
    reading.load([8])  # 4 and 5 are let go of
    reading.load([4])
    reading.close()
    assert loaded == [0, 1, 2, 3, 4, 5, 8, 4]


def test_an_error_comes_with_its_batch_and_names_its_images(tmp_path, loaded):
    paths = broken(tmp_path)
    reading = reader(paths, on_error="nan")
    reading.expect(range(4, 12))
    with pytest.raises(UnreadableImageError, match=r"sample 3 \('.*3.png'\)"):
        reading.load(range(4))
    reading.load([0, 1, 2])  # they are there already
    with pytest.raises(UnreadableImageError, match=r"(?s)sample 9 .*sample 10 ") as caught:
        reading.load(range(8, 12))
    assert [image.index for image in caught.value.images] == [9, 10]
    reading.close()
    assert loaded.count(0) == 1


def test_other_errors_come_as_they_are(monkeypatch):
    monkeypatch.setattr("skanomaly_vit._images.source.prepare", lambda *_: 1 / 0)
    reading = reader()
    with pytest.raises(ZeroDivisionError):
        reading.load([0])
    reading.close()


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("student", ["ridge", "block"])
def test_fits_and_scores_are_the_same_to_the_bit(make_detector, monkeypatch, student):
    options = {"student": student, "batch_size": 3, "activation_cache": 20_000}
    detector = make_detector(**options, n_jobs=2).fit(IMAGES)
    scores, maps = detector.score_samples(IMAGES, return_map=True)
    monkeypatch.setattr(_passes, "batches_ahead", lambda device: 0)
    plain = make_detector(**options).fit(IMAGES)
    np.testing.assert_array_equal(plain.score_samples(IMAGES), scores)
    np.testing.assert_array_equal(plain.anomaly_map(IMAGES), maps)


@pytest.mark.usefixtures("ahead")
def test_unreadable_images_are_gaps_and_no_other_score_moves(make_detector, tmp_path):
    paths = broken(tmp_path)
    detector = make_detector(batch_size=4, on_error="nan").fit(IMAGES)
    with pytest.warns(UnreadableImageWarning, match="4 of 20 images"):
        scores = detector.score_samples(paths)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 9, 10, 19]
    readable = ~np.isnan(scores)
    np.testing.assert_array_equal(scores[readable], detector.score_samples(IMAGES[readable]))


@pytest.mark.usefixtures("ahead")
def test_an_image_is_decoded_once_in_a_pass(make_detector, loaded):
    detector = make_detector(batch_size=3).fit(IMAGES)
    loaded.clear()
    detector.score_samples(IMAGES)
    assert sorted(loaded) == list(range(20))


@pytest.mark.usefixtures("ahead")
def test_a_pass_that_is_left_early_leaves_no_thread(make_detector, loaded):
    detector = make_detector(batch_size=3, n_jobs=2).fit(IMAGES)
    loaded.clear()
    passes = detector._passes(detector.features_._held_teacher(), open_images(IMAGES))
    batches = passes.passes.run(np.arange(20), [], lambda call: None)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()
    assert set(loaded) <= set(range(3 + 3 * BATCHES_AHEAD))


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_network_leaves_no_thread(make_detector, monkeypatch, error):
    detector = make_detector(batch_size=3, n_jobs=2).fit(IMAGES)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr("skanomaly_vit._backbone.teacher.penultimate", fail)
    with pytest.raises(error):
        detector.score_samples(IMAGES)
    assert not readers()


# Which device


@pytest.mark.parametrize(("device", "n_batches"), [("cpu", 0), ("cuda:1", 2), ("mps", 2)])
def test_only_other_devices_than_cpus_are_read_ahead_for(device, n_batches):
    assert batches_ahead(torch.device(device)) == n_batches


@pytest.mark.parametrize(("n_jobs", "n_threads"), [(None, 1), (1, 1), (3, 3), (-1, 4), (-9, 1)])
def test_threads_are_counted_as_joblib_does(monkeypatch, n_jobs, n_threads):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert count_threads(n_jobs) == n_threads


def test_batches_for_a_gpu_are_in_pinned_memory(monkeypatch):
    empty, asked = torch.empty, []

    def unpinned(*shape, pin_memory=False, **options):  # there is no GPU to pin for
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", unpinned)
    source = open_images(IMAGES)
    reading = Reader(source, PREPROCESSING, n_jobs=None, n_ahead=4, pinned=True)
    found = reading.load([1, 2])
    reading.close()
    assert asked == [True]
    assert torch.equal(found, source.load([1, 2], PREPROCESSING))


def test_a_gpu_copies_pinned_batches_without_waiting(make_detector, monkeypatch):
    teacher = make_detector().fit(IMAGES).features_._held_teacher()
    images = open_images(IMAGES[:2]).load([0, 1], teacher.preprocessing)
    expected = teacher(images, blocks=[], visit=lambda call: None)
    asked = []

    class Pinned(torch.Tensor):
        def is_pinned(self):
            return True

        def to(self, device, dtype, *, non_blocking):
            asked.append((device.type, non_blocking))
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(teacher, "device", torch.device("cuda"))
    found = teacher(images.as_subclass(Pinned), blocks=[], visit=lambda call: None)
    assert asked == [("cuda", True)]
    assert torch.equal(found, expected)
