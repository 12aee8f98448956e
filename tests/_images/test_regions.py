"""Regions of interest: masks, polygons of labelling tools, images with a region each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skanomaly_vit import MaskedImages, read_roi
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.preprocessing import Preprocessing, inner_size
from skanomaly_vit._images.regions import Framing

PREPROCESSING = Preprocessing((28, 28), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
RECTANGLE = np.zeros((20, 30), bool)
RECTANGLE[5:11, 3:13] = True


def write(tmp_path, content):
    path = tmp_path / "region.json"
    path.write_text(json.dumps(content))
    return str(path)


def coco(**annotation):
    return {"images": [{"width": 30, "height": 20}], "annotations": [annotation]}


def labelme(**shape):
    return {"imageWidth": 30, "imageHeight": 20, "shapes": [shape]}


@pytest.mark.parametrize(
    "content",
    [
        labelme(shape_type="rectangle", points=[[3, 5], [12, 10]]),
        labelme(points=[[3, 5], [12, 5], [12, 10], [3, 10]]),
        coco(segmentation=[[3, 5, 12, 5, 12, 10, 3, 10]]),
        coco(bbox=[3, 5, 9, 5]),
    ],
)
def test_polygons_of_labelling_tools(tmp_path, content):
    np.testing.assert_array_equal(read_roi(write(tmp_path, content)), RECTANGLE)
    np.testing.assert_array_equal(read_roi(write(tmp_path, content), ignore=True), ~RECTANGLE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [{}, {}], "annotations": []}, "about 2 images"),
        (coco(segmentation={"counts": [3], "size": [20, 30]}), "run-length mask"),
        (labelme(shape_type="circle", points=[[3, 5], [12, 10]]), "shape of type 'circle'"),
        (labelme(points=[[3, 5], [12, 5]])["shapes"], "no polygons that can be read"),
        ({**labelme(), "shapes": []}, "holds no polygon"),
        (labelme(points=[[3, 5], [12, 5]]), "has 2 corners"),
        ([], "no polygons that can be read"),
        (3, "no polygons that can be read"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_roi(write(tmp_path, content))


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "region.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_roi(path)


def test_a_region_that_ignores_everything_is_refused():
    with pytest.raises(ValueError, match=r"leaves none that counts.*ignore=False"):
        read_roi(np.ones((4, 4)), ignore=True)


def test_an_image_file_is_a_region(tmp_path):
    Image.fromarray(RECTANGLE).save(tmp_path / "roi.png")
    np.testing.assert_array_equal(read_roi(tmp_path / "roi.png"), RECTANGLE)


def test_masked_images_take_their_regions_along():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    masked = MaskedImages(images, list(range(5)))
    assert masked[[3, 1]].regions == [3, 1]
    assert masked[np.arange(5) > 2].regions == [3, 4]
    np.testing.assert_array_equal(masked[1:3].images, images[1:3])
    assert MaskedImages(["a", "b"], [1, 2])[[1]].images == ["b"]
    with pytest.raises(TypeError, match="not one"):
        masked[0]
    with pytest.raises(ValueError, match="5 images and 2 regions"):
        MaskedImages(images, [None, None])


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 2**32 - 1), st.booleans())
def test_an_input_depends_on_no_pixel_outside(shape, seed, keep_aspect):
    rng = np.random.default_rng(seed)
    region = rng.random(shape) < 0.4
    region[0, 0] = True
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    images[1, region] = images[0, region]
    source = open_images(
        MaskedImages(images, [region, region]), framing=Framing(keep_aspect=keep_aspect)
    )
    first, second = source.load([0, 1], PREPROCESSING)
    assert first.shape == (4, 28, 28)
    assert (first == second).all()
    assert first[3].any()


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_a_padded_image_fits_and_keeps_its_ratio(shape):
    height, width = inner_size(shape, (56, 84))
    assert 1 <= height <= 56
    assert 1 <= width <= 84
    assert height == 56 or width == 84
    scale = min(56 / shape[0], 84 / shape[1])
    assert abs(height - scale * shape[0]) <= 1
    assert abs(width - scale * shape[1]) <= 1


def test_padding_does_not_count_and_lies_around_the_image():
    white = np.full((1, 10, 20, 3), 255, np.uint8)
    (tensor,) = open_images(white, framing=Framing(keep_aspect=True)).load([0], PREPROCESSING)
    counts = np.zeros((28, 28))
    counts[7:21] = 1
    np.testing.assert_array_equal(tensor[3].numpy(), counts)
    assert not tensor[:3, counts == 0].any()
    assert (tensor[0, 7:21] > 2).all()


def test_keys_tell_regions_apart_and_digests_do_not():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    region = np.eye(4, dtype=bool)
    source = open_images(MaskedImages(images, [region, None]))
    assert source.digest(0) == source.digest(1)
    plain = open_images(images)
    keys = {source.key(0), source.key(1), plain.key(0)}
    keys |= {open_images(images, framing=f).key(0) for f in (Framing(region), Framing(None, True))}
    assert len(keys) == 5
    assert plain.key(0) == plain.digest(0)
