"""Images of the check of an export: near the threshold, with regions that cut patches."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

from skanomaly_vit._images.preprocessing import Preprocessing, covering
from skanomaly_vit.onnx._graph import DetectorGraph

#: Steps at most in which images of the check become normal ones; most take a dozen.
_MOST_STEPS = 40

#: Where the scores of these images are to lie, in standard deviations from the threshold.
_LEVELS = (-1.0, 0.0, 2.0)

#: Regions of the check: top, left, bottom and right, as shares of the sides, which cut patches.
_BOXES = (
    (0.0, 0.0, 1.0, 1.0),
    (0.23, 0.37, 0.91, 0.78),
    (0.0, 0.57, 1.0, 0.97),
    (0.44, 0.0, 0.62, 1.0),
    (0.13, 0.17, 0.41, 0.33),
)


def check_images(
    graph: DetectorGraph, preprocessing: Preprocessing, spread: float, roi: np.ndarray | None
) -> torch.Tensor:
    """Inputs of a graph, some near the threshold and the last two noise: (5, 3 or 4, h, w).

    If the graph takes regions, each input has another one: with `roi`, the first has that.
    """
    height, width = preprocessing.image_size
    # Noise, since the exporter may take values that all images share for constants.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, height, width, generator=generator)
    if not graph.takes_regions:
        return torch.cat([_near_the_threshold(graph, preprocessing, spread, None), noise])
    regions = _regions((height, width), roi)  # (5, 1, h, w)
    near = _near_the_threshold(graph, preprocessing, spread, regions[: len(_LEVELS)])
    return torch.cat([near, _framed(noise, regions[len(_LEVELS) :])])


def _regions(size: tuple[int, int], roi: np.ndarray | None) -> torch.Tensor:
    height, width = size
    regions = torch.zeros(len(_BOXES), 1, *size)
    for region, (top, left, bottom, right) in zip(regions, _BOXES, strict=True):
        rows = slice(math.floor(top * height), math.ceil(bottom * height))
        region[0, rows, math.floor(left * width) : math.ceil(right * width)] = 1
    if roi is not None:
        regions[0, 0] = torch.from_numpy(covering(roi, size).astype(np.float32))
    return regions


def _framed(images: torch.Tensor, regions: torch.Tensor | None) -> torch.Tensor:
    """Images as inputs of a graph: in the mean colour where pixels do not count."""
    return images if regions is None else torch.cat([images * regions, regions], dim=1)


def _near_the_threshold(
    graph: DetectorGraph,
    preprocessing: Preprocessing,
    spread: float,
    regions: torch.Tensor | None,
) -> torch.Tensor:
    """Inputs that score as normal images do: grey ones, changed until they do.

    The images of the fit are not kept. The scores of noise are so far off that float32 rounds them
    by more than what normal images differ by.
    """
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    black, white = (0 - mean) / std, (1 - mean) / std
    n = len(_LEVELS)
    noise = torch.randn(n, 3, *preprocessing.image_size, generator=torch.Generator().manual_seed(1))
    images = (black + white) / 2 + 0.05 * noise * (white - black)
    targets = float(graph.offset) + spread * torch.tensor(_LEVELS, dtype=torch.float64)
    best, nearest = images, torch.full((n,), math.inf, dtype=torch.float64)
    step = torch.full((n, 1, 1, 1), 0.02)
    for _ in range(_MOST_STEPS):
        try:
            # What a network of one's own warns of here is not about the detector.
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images = images.detach().requires_grad_()
                distance = (graph(_framed(images, regions))[0] - targets).abs()
                (slope,) = torch.autograd.grad(distance.sum(), images)
        except RuntimeError:  # it has no derivative
            break
        distance = distance.detach()
        is_nearer = distance < nearest
        best = torch.where(is_nearer[:, None, None, None], images.detach(), best)
        nearest = torch.where(is_nearer, distance, nearest)
        if not torch.isfinite(slope).all() or (nearest <= spread).all():
            break
        # From the nearest so far, in steps that shrink where they lead too far.
        step = torch.where(is_nearer[:, None, None, None], step * 1.1, step / 2)
        scale = slope.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        images = best - step * (white - black) * (slope / scale).sign()
        images = torch.minimum(torch.maximum(images, black), white)
    return _framed(best.detach(), regions)
