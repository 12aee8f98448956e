"""Near copies: held-out images nearer to images learned from than chance allows.

Frames of a video, or shots of one part, differ in content, so that they are units of their own. A
held-out image with such a twin among the images learned from scores too high to calibrate.

Ranked by distance from an image of a set of local dimension D, independent images keep a rule: of
the logarithms of neighbouring distances, the differences times D and the lower rank are independent
and exponential of mean 1 (the distances to the D-th power are a Poisson process). Twins break it: a
gap follows the last of them. The farther ranks tell D.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skanomaly_vit._images.units import UNIT
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import FloatArray
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import ImageSample, n_images
from skanomaly_vit.exceptions import CalibrationWarning

#: Largest number of held-out images to compare.
_N_COMPARED = 256

#: Ranks after which a gap may follow: of most twins that an image may have.
_N_TWINS = 12

#: Ranks that tell the dimension: up to this multiple of those.
_N_FAR = 4

#: Probability of a gap by chance, for an image.
_CHANCE = 0.01

#: Factor between the distances on both sides of a gap. Loose clusters, such as cells of one solar
#: module, have smaller gaps.
_GAP = 1.4

#: Warn from this share of images with a gap on, and this number. A share s of twins makes false
#: alarms more frequent by a factor of 1 / (1 - s).
_SHARE, _FEWEST = 0.15, 4

#: A twin of an image is as near to it as to its own nearest neighbour, up to this factor.
_AS_NEAR = 1.5


def warn_of_near_copies(held_out: ImageSample, learned: Rows) -> None:
    """Warn if held-out images have near copies among those learned from.

    Parameters
    ----------
    held_out : dict of str to RowSample
        Sample of the images that calibrate.
    learned : Rows
        Pre-trained features of the images learned from, one of each unit.
    """
    if not n_images(held_out):
        return
    images = one_of_each_unit(held_out).gather()[:_N_COMPARED]
    found = find_near_copies(images, learned)
    if not are_too_many(found):
        return
    warn_user(
        f"{found.sum()} of {len(images)} held-out images that were compared are far nearer to a "
        "few images learned from than to the others, as frames of one video or shots of one object "
        "are. Such near copies score too high to calibrate: images of other videos or objects "
        "will be flagged more often than asked for. Fit with groups=, the video or object of each "
        "image.",
        CalibrationWarning,
    )


def are_too_many(found: NDArray[np.bool_]) -> bool:
    """Whether near copies are more than chance finds, and enough to spoil a threshold."""
    return bool(found.sum() >= max(_FEWEST, _SHARE * len(found)))


def one_of_each_unit(sample: ImageSample) -> Rows:
    """Features of a sample in its first view, one image of each unit."""
    rows = sample[next(iter(sample))].rows.astype(np.float64)
    if UNIT in sample:  # not in a file of an older format
        rows = rows[_first_of_each(sample[UNIT].rows[:, 0])]
    return Rows.of(rows)


def one_learned_of_each_unit(store: FeatureStore, learned: np.ndarray) -> Rows:
    """Features in the first view of the images that a mask chooses, one of each unit."""
    first = _first_of_each(store.column(UNIT, learned))
    return store.rows(store.first_view, store.mask(np.flatnonzero(learned)[first]))


def _first_of_each(units: FloatArray) -> NDArray[np.intp]:
    """Positions of the first image of each unit, ascending."""
    return np.sort(np.unique(units, return_index=True)[1])


def find_near_copies(held_out: FloatArray, learned: Rows) -> NDArray[np.bool_]:
    """Whether each image has a twin among those learned from.

    Parameters
    ----------
    held_out : ndarray of shape (n_held_out, n_features), float64
    learned : Rows
        At least 8, or no image has a twin.

    Returns
    -------
    has_twin : ndarray of shape (n_held_out,), bool
        For independent images True with a probability of at most 0.01.
    """
    n_learned = learned.shape[0]
    n_ranks = min(_N_TWINS, n_learned // 4)
    if n_ranks < 2 or not len(held_out):
        return np.zeros(len(held_out), dtype=bool)
    n_far = min(_N_FAR * n_ranks, n_learned // 2)
    distances, nearest = _neighbours(held_out, learned, n_far)
    logs = np.log(np.maximum(distances, np.finfo(float).tiny))
    gaps = np.diff(logs)[:, :n_ranks]
    of_mean_1 = _dimension(logs, n_ranks) * np.arange(1, n_ranks + 1) * gaps
    by_chance = of_mean_1 < -np.log1p(-((1 - _CHANCE) ** (1 / n_ranks)))
    has_gap = (~by_chance & (gaps > np.log(_GAP))).any(axis=1)
    # A gap also follows a cluster of twins to each other, learned from one and all.
    own, _ = _neighbours(nearest, learned, 2)  # the first is the image itself
    return has_gap & (distances[:, 0] <= _AS_NEAR * own[:, 1])


def _dimension(logs: FloatArray, n_near: int) -> float:
    """Local dimension, by maximum likelihood, from the logarithms of distances of far ranks."""
    n_far = logs.shape[1]
    ranks = np.arange(n_near + 1, n_far)
    spread = float(np.mean(logs[:, -1:] - logs[:, n_near:-1]))
    return float(np.mean(np.log(n_far / ranks))) / spread if spread > 0 else 0.0


def _neighbours(images: FloatArray, learned: Rows, n: int) -> tuple[FloatArray, FloatArray]:
    """Distances of the `n` nearest rows, ascending, and the nearest one of each image."""
    distances = np.full((len(images), n), np.inf)
    nearest = np.zeros_like(images)
    for shard in learned:
        squares = (images**2).sum(axis=1)[:, None] + (shard**2).sum(axis=1) - 2 * images @ shard.T
        new = np.sqrt(np.maximum(squares, 0.0))  # [image, row of the shard]
        closer = new.min(axis=1) < distances[:, 0]
        nearest[closer] = shard[new.argmin(axis=1)[closer]]
        distances = np.sort(np.concatenate([distances, new], axis=1), axis=1)[:, :n]
    return distances, nearest
