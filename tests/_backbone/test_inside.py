"""Patches that do not count: they take no part in views, nor in the errors of students."""

from __future__ import annotations

import pytest
import torch

from skanomaly_vit._backbone.anomaly_maps import continued
from skanomaly_vit._backbone.views import Readout, View

N_PREFIX = 2
TOKENS = torch.randn(3, N_PREFIX + 9, 5, generator=torch.Generator().manual_seed(0))
ERRORS = TOKENS.square().mean(dim=2)
INSIDE = torch.zeros(3, 9, dtype=torch.bool)
INSIDE[0, :4], INSIDE[1, 8], INSIDE[2] = True, True, True


def of_some(values, image):
    """The tokens of an image without the patches that do not count."""
    return torch.cat([values[image, :N_PREFIX], values[image, N_PREFIX:][INSIDE[image]]])[None]


@pytest.mark.parametrize("pooling", ["max_patch", "mean_patch", "pooled"])
def test_views_leave_out_patches(pooling):
    found = View(pooling).pool(TOKENS, N_PREFIX, INSIDE)
    for image in range(3):
        expected = View(pooling).pool(of_some(TOKENS, image), N_PREFIX)
        torch.testing.assert_close(found[image : image + 1], expected)
    assert (found[0] != View(pooling).pool(TOKENS, N_PREFIX)[0]).any() == (pooling != "pooled")


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.5, 1.0])
def test_errors_leave_out_patches(share):
    readout = Readout(pooling=share)
    found = readout.pool_errors(ERRORS, N_PREFIX, INSIDE)
    for image in range(3):
        expected = readout.pool_errors(of_some(ERRORS, image), N_PREFIX)
        torch.testing.assert_close(found[image : image + 1], expected)


def test_maps_go_on_outside_with_the_nearest_patch_inside():
    generator = torch.Generator().manual_seed(1)
    inside = torch.rand(20, 5, 7, generator=generator) < torch.linspace(0.05, 1, 20)[:, None, None]
    inside[:, 4, 3] = True
    maps = torch.rand(20, 5, 7, generator=generator, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(5), torch.arange(7)).double()
    for found, plane, counts in zip(continued(maps, inside), maps, inside, strict=True):
        distances = torch.cdist(places, places)[:, counts.flatten()]
        nearest = distances == distances.amin(dim=1, keepdim=True)
        is_taken = found.flatten()[:, None] == plane[counts]
        assert (nearest & is_taken).any(dim=1).all()
        torch.testing.assert_close(found[counts], plane[counts], rtol=0, atol=0)
