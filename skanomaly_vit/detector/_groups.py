"""Verdicts of groups of images, such as several views of one part."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit._utils.labels import as_labels
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.calibration import conformal_p_values, conformal_threshold
from skanomaly_vit.exceptions import CalibrationWarning

#: How the scores of a group become one: that of its most abnormal image, or their mean.
AGGREGATES = {"max": np.minimum.reduceat, "mean": np.add.reduceat}


def verdicts_of(
    scores: np.ndarray, groups: Any, *, aggregate: str, known: np.ndarray, units: Any, rate: float
) -> Bunch:
    """See `TransformalyDetector.score_groups`; `known` and `units` are those that calibrate."""
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate={aggregate!r} is not one of {tuple(AGGREGATES)}")
    names = np.asarray(as_labels(np.asarray(groups, dtype=object), "groups", "group"), dtype=object)
    if names.shape != scores.shape:
        raise ValueError(
            f"groups has shape {names.shape}; pass one group for each of {len(scores)} images"
        )
    if units is None:
        raise ValueError(
            "the images that calibrate have no groups, so that groups cannot be compared with "
            "them; fit with the same kind of groups, fit(X, groups=...)"
        )
    ids: dict[Any, int] = {}
    codes = np.array([ids.setdefault(name, len(ids)) for name in names.tolist()])
    found, sizes = _aggregated(scores, codes, aggregate)
    calibrating, known_sizes = _aggregated(
        known, np.unique(units, return_inverse=True)[1], aggregate
    )
    _warn_of_other_sizes(list(ids), sizes, known_sizes)
    offset = conformal_threshold(calibrating, rate)
    p_values = np.full(len(found), np.nan)
    is_known = ~np.isnan(found)
    p_values[is_known] = conformal_p_values(calibrating, found[is_known])
    return Bunch(
        groups=np.array(list(ids), dtype=object),
        scores=found,
        p_values=p_values,
        labels=np.where(found >= offset, 1, -1),
        offset=offset,
        n_images=sizes,
        n_calibrating=len(calibrating),
    )


def _aggregated(
    scores: np.ndarray, codes: np.ndarray, aggregate: str
) -> tuple[np.ndarray, np.ndarray]:
    """Score of each group, and its number of images, in the order of the codes."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    values = AGGREGATES[aggregate](scores[order], starts)
    return (values / sizes if aggregate == "mean" else values), sizes


def _warn_of_other_sizes(names: list[Any], sizes: np.ndarray, known: np.ndarray) -> None:
    unusual = np.flatnonzero(~np.isin(sizes, known))
    if len(unusual):
        name, size = names[unusual[0]], sizes[unusual[0]]
        usual = ", ".join(map(str, np.unique(known).tolist()))
        warn_user(
            f"{len(unusual)} of {len(sizes)} groups have other numbers of images than those that "
            f"calibrate ({usual}): {name!r} has {size}. The more images, the more abnormal the "
            "worst one; their p-values are not comparable.",
            CalibrationWarning,
        )
