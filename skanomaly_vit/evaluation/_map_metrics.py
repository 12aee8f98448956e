"""Metrics of anomaly maps against masks of defects.

Masks come with a data set (`skanomaly_vit.datasets.load_mvtec`), or from `paste_defects`, which
makes defects on normal images. `TransformalyDetector.anomaly_map` makes the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from skanomaly_vit._images.masks import Defect, read_mask

Planes: TypeAlias = np.ndarray | Sequence[np.ndarray]


def pixel_auroc(masks: Any, maps: Planes, *, defect: Defect = "auto") -> float:
    """AUROC of defective pixels against the others, over all images together.

    Parameters
    ----------
    masks : sequence of n masks
        For each image an array (height, width), 0 or False where it is normal; the path of such an
        image, or a PIL image, whose transparent pixels are normal; or None for an image without a
        defect.
    maps : ndarray of shape (n, height, width) or list of ndarray of shape (height, width)
        Maps of `TransformalyDetector.anomaly_map`. Higher = more abnormal.
    defect : {"auto", "nonzero", "bright"}, int or list of int, default="auto"
        Which pixels of a mask are defective; see `skanomaly_vit.datasets.read_mask`.

    Returns
    -------
    auroc : float
        In [0, 1]; 0.5 is chance. It is lenient: if defects are small, a map that marks ten times
        their area still scores well; see `per_region_overlap`.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map is not finite, or pixels of one kind are
        missing, or a mask is doubtful.

    See Also
    --------
    per_region_overlap : Small defects count as much as large ones.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.evaluation._map_metrics import pixel_auroc
    >>> mask = np.array([[True, False], [False, False]])
    >>> pixel_auroc([mask], [np.array([[3.0, 0.1], [0.2, -1.0]])])
    1.0
    """
    pairs = _pairs(masks, maps, defect)
    is_defect, scores = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    _require_both_kinds(is_defect)
    return float(roc_auc_score(is_defect, scores))


def per_region_overlap(
    masks: Any, maps: Planes, *, max_fpr: float = 0.3, defect: Defect = "auto"
) -> float:
    """Mean share of a defect that a map finds, averaged over few false alarms (AUPRO [1]_).

    Parameters
    ----------
    masks : sequence of n masks
        As in `pixel_auroc`. Pixels that touch by edges or corners form a region.
    maps : ndarray of shape (n, height, width) or list of ndarray of shape (height, width)
        Higher = more abnormal.
    max_fpr : float, default=0.3
        In (0, 1]: the average runs up to this share of falsely marked normal pixels; the authors
        take 0.3.
    defect : {"auto", "nonzero", "bright"}, int or list of int, default="auto"
        As in `pixel_auroc`.

    Returns
    -------
    overlap : float
        In [0, 1]; chance is half of `max_fpr`.

    Raises
    ------
    ValueError
        If `max_fpr` is out of range, or as `pixel_auroc` does.

    See Also
    --------
    pixel_auroc : All pixels count alike.

    Notes
    -----
    The function computes the area under the curve of overlap over false positive rate exactly, not
    on a grid of thresholds: a pixel of a region is found from the rate at which its own value is
    the threshold.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger and C. Steger, "Uninformed Students:
       Student-Teacher Anomaly Detection with Discriminative Latent Embeddings", CVPR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.evaluation._map_metrics import per_region_overlap
    >>> mask = np.array([[True, False], [False, False]])
    >>> per_region_overlap([mask], [np.array([[3.0, 0.1], [0.2, -1.0]])])
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr!r} is not in (0, 1]")
    pairs = _pairs(masks, maps, defect)
    _require_both_kinds(np.concatenate([mask.ravel() for mask, _ in pairs]))
    normal = np.sort(np.concatenate([scores[~mask] for mask, scores in pairs]))
    overlaps: list[float] = []
    for mask, scores in pairs:
        regions, n_regions = label(mask, structure=np.ones((3, 3)))
        found = _mean_found(scores[mask], normal, max_fpr)
        sizes = np.bincount(regions[mask], minlength=n_regions + 1)[1:]
        sums = np.bincount(regions[mask], weights=found, minlength=n_regions + 1)[1:]
        overlaps.extend(sums / sizes)
    return float(np.mean(overlaps))


def _mean_found(scores: np.ndarray, normal: np.ndarray, max_fpr: float) -> np.ndarray:
    """For each pixel, the share of the rates up to `max_fpr` at which it is found."""
    above = 1 - np.searchsorted(normal, scores, side="right") / len(normal)
    from_there = 1 - np.searchsorted(normal, scores, side="left") / len(normal)
    # Among normal pixels of the same value the curve rises linearly.
    tied = from_there - above
    left, right = (np.clip(max_fpr - rate, 0, None) for rate in (above, from_there))
    rising = (left - right) * (left + right) / (2 * np.where(tied > 0, tied, 1))
    return np.where(tied > 0, rising, left) / max_fpr


def _pairs(masks: Any, maps: Planes, defect: Defect) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and maps as arrays, checked."""
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks for {len(maps)} maps; pass one mask a map")
    if not len(masks):
        raise ValueError("there are no maps; pass at least one")
    pairs = zip(masks, maps, strict=True)
    return [_pair(index, *pair, defect) for index, pair in enumerate(pairs)]


def _pair(index: int, mask: Any, values: Any, defect: Defect) -> tuple[np.ndarray, np.ndarray]:
    if np.ma.is_masked(values):
        raise ValueError(f"map {index} is a masked array; pass values for all of its pixels")
    scores = np.asarray(values, dtype=np.float64)
    try:
        marked = np.zeros(scores.shape, bool) if mask is None else read_mask(mask, defect=defect)
    except ValueError as error:
        raise ValueError(f"mask {index}: {error}") from error
    if marked.shape != scores.shape or scores.ndim != 2:
        raise ValueError(
            f"mask {index} has shape {marked.shape} and its map {scores.shape}; both have to be "
            "(height, width) of the image"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"map {index} holds values that are not finite")
    return marked, scores


def _require_both_kinds(is_defect: np.ndarray) -> None:
    if is_defect.all() or not is_defect.any():
        kind = "defective" if is_defect.all() else "normal"
        raise ValueError(
            f"all {is_defect.size} pixels are {kind}; pass masks with pixels of both kinds"
        )
