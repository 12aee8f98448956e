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
    enlarged = enlarge(maps[np.isin(mapped, list(sizes))], list(sizes.values()))
    if len(sizes) == len(source):
        return enlarged
    filled = [np.empty((0, 0), np.float32)] * len(source)
    for position, plane in zip(sizes, enlarged, strict=True):
        filled[position] = plane
    return filled


def warn_gaps(source: ImageSource) -> None:
    """Warn of the unreadable images, if there are any."""
    gaps = sorted(source.unreadable)
    warn_unreadable([source.unreadable[position] for position in gaps], len(source))


#: Maps of images: (n_images, height, width), or one by one where sizes differ.
Maps: TypeAlias = np.ndarray | list[np.ndarray]
