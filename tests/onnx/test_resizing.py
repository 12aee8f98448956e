"""Pixels and maps without torch: what torch gives, up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from skanomaly_vit._backbone.anomaly_maps import enlarge as enlarge_by_torch
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.preprocessing import Preprocessing, covering, frame, inner_size
from skanomaly_vit._images.regions import Framing, MaskedImages
from skanomaly_vit.onnx._resizing import enlarge, prepare

SIDES = st.integers(1, 70)
#: torch repeats the first pixel of a column where an output is one pixel wide, and nobody's network
#: takes that.
NEW_SIDES = st.integers(2, 70)
NORMAL = (0.5, 0.4, 0.3), (0.25, 0.5, 1.0)
TYPES = [np.uint8, np.uint16, np.float32, np.float64]


def draw_image(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return rng.random(shape).astype(dtype)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@settings(max_examples=60, deadline=None)
@given(
    st.tuples(SIDES, SIDES),
    st.tuples(NEW_SIDES, NEW_SIDES),
    st.sampled_from(TYPES),
    st.integers(0, 99),
)
def test_pixels_are_those_of_torch(mode, old, new, dtype, seed):
    image = draw_image(seed, (*old, 3), dtype)
    preprocessing = Preprocessing(new, *NORMAL, mode)
    expected = open_images([image]).load([0], preprocessing)[0].numpy()
    found = prepare(image, preprocessing)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # A std of 0.25 makes four of a rounding that is less than 3e-5 of white.
    exact = mode == "nearest" or old == new
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1.2e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(SIDES, SIDES),
    st.tuples(NEW_SIDES, NEW_SIDES),
    st.sampled_from(TYPES),
    st.integers(0, 99),
    st.booleans(),
)
def test_framed_pixels_are_those_of_torch(old, new, dtype, seed, keep_aspect):
    assume(not keep_aspect or min(inner_size(old, new)) > 1)  # as above
    image, preprocessing = draw_image(seed, (*old, 3), dtype), Preprocessing(new, *NORMAL)
    region = np.random.default_rng(seed).random(old) < 0.3
    region[-1, -1] = True
    masked, framing = MaskedImages([image], [region]), Framing(keep_aspect=keep_aspect)
    expected = open_images(masked, framing=framing).load([0], preprocessing)[0].numpy()
    found = frame(image, preprocessing, region, prepare, keep_aspect=keep_aspect)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found[3], expected[3])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-4)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(0, 99))
def test_a_smaller_region_covers_what_counts(old, new, seed):
    region = np.random.default_rng(seed).random(old) < 0.1
    mask = torch.from_numpy(region.astype(np.float32))[None]
    expected = torch.nn.functional.adaptive_max_pool2d(mask, new)[0].numpy()
    np.testing.assert_array_equal(covering(region, new), expected > 0)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(0, 99))
def test_maps_are_those_of_torch(old, new, seed):
    maps = np.random.default_rng(seed).normal(size=(2, *old)).astype(np.float32)
    found = np.stack(enlarge(maps, [new, new]))
    assert found.dtype == np.float32
    # Places of up to 70 round by 4e-6 in float32, and neighbours differ by up to 8.
    np.testing.assert_allclose(found, enlarge_by_torch(maps, [new, new]), atol=6e-5)


def test_an_image_is_not_written_to():
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    kept = image.copy()
    prepare(image, Preprocessing((4, 5), (0.5,) * 3, (0.5,) * 3))
    np.testing.assert_array_equal(image, kept)
