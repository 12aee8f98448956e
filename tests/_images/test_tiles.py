"""Tiles of large pictures: boxes, sources of tiles, worst tiles, stitched maps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skanomaly_vit import MaskedImages
from skanomaly_vit._images import source as source_module
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.regions import Framing
from skanomaly_vit._images.tiles import TiledSource, boxes_of, check_tiles, tile, worst_rows

PREPROCESSING = Preprocessing((28, 28), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
SIDES = st.integers(1, 300)
TILINGS = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(8, 80), st.just("auto")
)


def tiles_of(X, tiling=(2, 2), **framing):
    return tile(open_images(X, framing=Framing(tiles=tiling, **framing)), (28, 28))


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), TILINGS)
def test_boxes_cover_each_pixel_and_stay_inside(size, tiling):
    covered = np.zeros(size, int)
    boxes = boxes_of(size, tiling, (28, 42))
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        covered[top:bottom, left:right] += 1
    assert covered.all()
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert len(set(heights)) == len(set(widths)) == 1
    if isinstance(tiling, tuple):
        assert len(boxes) == min(tiling[0], size[0]) * min(tiling[1], size[1])
    else:
        sides = (28, 42) if tiling == "auto" else (tiling, tiling)
        assert (heights[0], widths[0]) == (min(sides[0], size[0]), min(sides[1], size[1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 300), st.integers(2, 6))
def test_neighbours_overlap_by_about_an_eighth(side, number):
    boxes = boxes_of((8, side), (1, number), (28, 28))
    lefts, rights = boxes[:, 1], boxes[:, 3]
    overlaps = (rights[:-1] - lefts[1:]) / (rights[0] - lefts[0])
    assert (overlaps >= 0).all()
    assert abs(overlaps.mean() - 0.125) < 2 / (rights[0] - lefts[0])


@pytest.mark.parametrize("tiles", [0, -3, "all", (2,), (0, 2), (2, 2, 2), 1.5, True, (1.0, 2)])
def test_other_tilings_are_refused(tiles):
    with pytest.raises(ValueError, match="is not 'auto', a side in pixels, or"):
        check_tiles(tiles)


def test_a_tile_holds_the_pixels_of_its_box():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    tiled = tiles_of(images, (2, 3))
    assert len(tiled) == 18
    boxes = boxes_of((40, 60), (2, 3), (28, 28))
    for place in range(18):
        top, left, bottom, right = boxes[place % 6]
        np.testing.assert_array_equal(tiled[place], images[place // 6, top:bottom, left:right])
        assert tiled.size(place) == (bottom - top, right - left)
    assert len({tiled.key(place) for place in range(18)}) == 18


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_image_is_decoded_once_for_its_tiles(tmp_path, monkeypatch, n_jobs):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path in paths:
        Image.fromarray(np.full((50, 50, 3), 200, np.uint8)).save(path)
    decoded = []
    decode = source_module.decode_image

    def counting(item, max_pixels):
        decoded.append(item)
        return decode(item, max_pixels)

    tiled = tiles_of(paths, (3, 3))
    monkeypatch.setattr(source_module, "decode_image", counting)
    for start in (0, 9):
        tiled.load(range(start, start + 9), PREPROCESSING, n_jobs)
    assert decoded == paths


def test_parts_and_copies_hold_the_same_tiles():
    images = [np.full((30 + i, 40, 3), 40 * i + 40, np.uint8) for i in range(4)]
    tiled = tiles_of(images)
    places = np.array([3, 4, 5, 12])
    for other in (
        tiled.take(places),
        tiled.subset(places),
        pickle.loads(pickle.dumps(tiled.take(places))),
    ):
        assert isinstance(other, TiledSource)
        assert other.owners.tolist() == [0, 1, 1, 3]
        for own, place in enumerate(places):
            np.testing.assert_array_equal(other[own], tiled[place])
            assert other.key(own) == tiled.key(place)
            assert other.name(own) == tiled.name(place)
    assert len(tiled.subset(places)._items) == 3


def test_tiles_without_a_pixel_that_counts_are_left_out():
    images = np.zeros((2, 40, 40, 3), np.uint8)
    corner = np.zeros((40, 40), bool)
    corner[:5, :5] = True
    tiled = tiles_of(images, roi=corner)
    assert tiled.owners.tolist() == [0, 1]
    np.testing.assert_array_equal(tiled.region(0, tiled.size(0)), corner[:22, :22])
    own = tiles_of(MaskedImages(images, [corner, None]))
    assert own.owners.tolist() == [0, 1, 1, 1, 1]


def test_an_image_with_a_tile_that_cannot_be_read_has_no_score(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    for path in (good, bad):
        Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(path)
    framing = Framing(tiles=(2, 2))
    source = open_images([str(bad), str(good)], on_error="nan", framing=framing)
    tiled = tile(source, (28, 28))
    bad.unlink()
    for place in range(8):
        tiled.try_load(place, np.copy)
    assert tiled.readable().tolist() == [4, 5, 6, 7]
    worst = tiled.worst({"a": np.arange(4.0), "b": np.array([0, -5.0, 0, 0])}, source)
    assert source.readable().tolist() == [1]
    assert {k: v.tolist() for k, v in worst.items()} == {"a": [1.0], "b": [-5.0]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_worst_tiles_come_in_order_however_batches_fall(counts, seed, size):
    images = [np.zeros((20, 20 * n), np.uint8) for n in counts]
    source = open_images(images or [np.zeros((20, 20), np.uint8)], framing=Framing(tiles=20))
    tiled = tile(source, (28, 28))
    scores = np.random.default_rng(seed).normal(size=len(tiled))
    expected = [scores[tiled.owners == i].min() for i in range(len(source))]
    batches = (scores[start : start + size] for start in range(0, len(scores), size))
    found = list(tiled.worst_in_order(batches, source))
    assert np.concatenate(found).tolist() == expected
    np.testing.assert_array_equal(scores[worst_rows(scores, tiled.owners)], expected)


def test_stitched_maps_have_no_seam():
    size = (60, 90)
    source = open_images([np.zeros((*size, 3), np.uint8)], framing=Framing(tiles=(2, 3)))
    tiled = tile(source, (28, 28))
    plane = np.add.outer(np.arange(60.0), np.arange(90.0)).astype(np.float32)
    maps = [plane[tiled._slices(place)] for place in range(len(tiled))]
    ((position, stitched),) = tiled.stitch(maps, source)
    assert position == 0
    np.testing.assert_allclose(stitched, plane, rtol=1e-5)
    # Where neighbours disagree, one fades into the other.
    maps = [np.full(each.shape, i % 3, np.float32) for i, each in enumerate(maps)]
    ((_, stitched),) = tiled.stitch(maps, source)
    assert np.abs(np.diff(stitched, axis=1)).max() < 0.4
