"""`iter_scores`: a score or a cause for each image, in order and in constant memory."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.onnx import OnnxDetector, export_onnx


@pytest.fixture
def detector(make_detector, images) -> TransformalyDetector:
    return make_detector(batch_size=4, contamination=0.2).fit(images)


@pytest.fixture
def paths(images, tmp_path) -> list[str]:
    names = [str(tmp_path / f"{i:02}.png") for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 4, 100])
def test_scores_are_those_of_score_samples_to_the_bit(detector, images, paths, chunk_size):
    expected = detector.score_samples(images)
    for X in (images, paths, iter(paths), iter(list(images))):
        found = list(detector.iter_scores(X, chunk_size=chunk_size))
        assert [image.score for image in found] == expected.tolist()
        assert [image.index for image in found] == list(range(len(images)))
        assert {image.cause for image in found} == {None}


def test_paths_come_back(detector, images, paths):
    assert [image.path for image in detector.iter_scores(iter(paths))] == paths
    assert {image.path for image in detector.iter_scores(images)} == {None}


@pytest.mark.parametrize("on_error", ["raise", "nan"])
@pytest.mark.parametrize("broken", [[0], [3, 4], [19], [16, 17, 18, 19], list(range(20))], ids=str)
@pytest.mark.parametrize("chunk_size", [4, 7, None])
def test_unreadable_images_keep_their_places(detector, paths, broken, chunk_size, on_error):
    expected = detector.score_samples(paths)
    detector.set_params(on_error=on_error)
    for position in broken:
        with open(paths[position], "wb") as file:
            file.write(b"no image")
    found = list(detector.iter_scores(paths, chunk_size=chunk_size))
    assert [image.index for image in found] == list(range(len(paths)))
    for position, image in enumerate(found):
        if position in broken:
            assert np.isnan(image.score)
            assert "cannot identify" in image.cause
        else:
            assert (image.score, image.cause) == (expected[position], None)


def test_an_iterator_is_read_no_further_than_its_chunk(detector, paths):
    taken = []

    def stream():
        for path in paths:
            taken.append(path)
            yield path

    scores = detector.iter_scores(stream(), chunk_size=4)
    next(scores)
    assert len(taken) == 4
    for _ in range(4):
        next(scores)
    assert len(taken) == 8


def test_a_memory_changes_no_score(make_detector, images, tmp_path, detector):
    remembering = make_detector(memory=tmp_path / "m", batch_size=4, contamination=0.2).fit(images)
    found = [image.score for image in remembering.iter_scores(images, chunk_size=8)]
    assert found == detector.score_samples(images).tolist()


@pytest.mark.parametrize("X", [[], np.empty((0, 32, 32, 3), np.uint8), "folder", [np.nan]], ids=str)
def test_what_is_no_images_is_refused(detector, X):
    with pytest.raises(ValueError, match=r"sample|images|pass|Pass|empty"):
        list(detector.iter_scores(X))


def test_no_image_comes_of_an_empty_iterator(detector):
    assert list(detector.iter_scores(iter([]))) == []


def test_a_chunk_has_an_image(detector, images):
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
        next(detector.iter_scores(images, chunk_size=0))


def test_a_detector_that_is_not_fitted_says_so(images):
    with pytest.raises(NotFittedError):
        next(TransformalyDetector().iter_scores(images))


def test_a_detector_from_an_onnx_file_has_it_too(images, paths, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=1, batch_size=4,
        contamination=0.2, random_state=0,
    ).fit(images)  # fmt: skip
    export_onnx(detector, tmp_path / "d.onnx")
    loaded = OnnxDetector.load(tmp_path / "d.onnx", batch_size=4)
    expected = loaded.score_samples(paths)
    with open(paths[5], "wb") as file:
        file.write(b"no image")
    found = list(loaded.iter_scores(iter(paths), chunk_size=8))
    scores = [image.score for image in found]
    np.testing.assert_allclose(np.delete(scores, 5), np.delete(expected, 5), rtol=1e-3, atol=1e-4)
    assert "cannot identify" in found[5].cause
