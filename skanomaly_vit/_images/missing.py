"""Missing values: NaN scores and empty maps for unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.unreadable import warn_unreadable


def fill_scores(
    scores: Mapping[str, np.ndarray], scored: np.ndarray, source: ImageSource
) -> dict[str, np.ndarray]:
    """Scores of all images; unreadable ones get NaN and an `UnreadableImageWarning`.

    Parameters
    ----------
    scores : mapping of str to ndarray of shape (n_scored,), float64
    scored : ndarray of shape (n_scored,), int
        Position of the image of each score.
    source : ImageSource

    Returns
    -------
    scores : dict of str to ndarray of shape (n_images,), float64
    """
    warn_gaps(source)
    gaps = list(source.unreadable)
    filled = {}
    for space, values in scores.items():
        filled[space] = np.full(len(source), np.nan)
        filled[space][scored] = values
        # An image may vanish after it was scored, before its map learned its size.
        filled[space][gaps] = np.nan
    return filled


def fill_maps(
    maps: np.ndarray,
    mapped: np.ndarray,
    source: ImageSource,
    enlarge: Callable[[np.ndarray, Sequence[tuple[int, int]]], Maps],
) -> Maps:
    """Maps of all images at their own sizes; unreadable images get a map of shape (0, 0).

    Pixels that do not count get 0, the mean of normal patches.

    Parameters
    ----------
    maps : ndarray of shape (n_mapped, rows, columns)
    mapped : ndarray of shape (n_mapped,), int
        Position of the image of each map.
    source : ImageSource
    enlarge : callable
        Interpolates maps to the sizes of their images; gives one array if all sizes agree.
    """
    sizes = source.each(source.size, mapped.tolist())
    canvases = [source.canvas(size, maps.shape[1:]) for size in sizes.values()]
    enlarged = enlarge(maps[np.isin(mapped, list(sizes))], canvases)
    if source.has_regions:
        enlarged = _inside_alone(enlarged, sizes, source)
    if len(sizes) == len(source):
        return enlarged
    filled = [np.empty((0, 0), np.float32)] * len(source)
    for position, plane in zip(sizes, enlarged, strict=True):
        filled[position] = plane
    return filled


def _inside_alone(maps: Maps, sizes: Mapping[int, tuple[int, int]], source: ImageSource) -> Maps:
    """Maps without the padding of their images, 0 where no pixel counts."""
    planes = []
    for plane, (position, size) in zip(maps, sizes.items(), strict=True):
        top, left = ((whole - part) // 2 for whole, part in zip(plane.shape, size, strict=True))
        cut = plane[top : top + size[0], left : left + size[1]]
        region = source.region(position, size)
        planes.append(cut if region is None else np.where(region, cut, np.float32(0)))
    return np.stack(planes) if len(set(sizes.values())) == 1 else planes


def warn_gaps(source: ImageSource) -> None:
    """Warn of the unreadable images, if there are any."""
    gaps = sorted(source.unreadable)
    warn_unreadable([source.unreadable[position] for position in gaps], len(source))


#: Maps of images: (n_images, height, width), or one by one where sizes differ.
Maps: TypeAlias = np.ndarray | list[np.ndarray]
