"""Calibration by all images: each is scored by a model that has not learned from it.

One of these models is the detector's own. All learn from equally many images: scores of unseen
images rise with the number of images that a model has learned from, so a model of all of them would
compare its scores with lower ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from sklearn.model_selection import GroupKFold

from skanomaly_vit.detector._fusion import FalseAlarms, FittedDensities, several_of_a_unit

#: Models, each without a share of the images. The more, the more images does each learn from, and
#: the longer they take.
N_FOLDS = 10

#: Images to learn from, and images to leave out.
Fold: TypeAlias = tuple[np.ndarray, np.ndarray]

#: Of a model that only gives scores: any rate that one image suffices for.
UNUSED_RATE = FalseAlarms(0.5)


def folds_of(units: np.ndarray, seed: int) -> Iterator[Fold]:
    """Folds of images; a unit is left out as a whole.

    Raises
    ------
    ValueError
        If there is one unit only.
    """
    n_units = len(np.unique(units))
    if n_units < 2:
        raise ValueError(
            f"all {len(units)} images belong to one group, or are copies of one image, so none "
            "can be left out; pass other images, groups=None, or calibration='split' with "
            "validation_fraction=0"
        )
    folds = GroupKFold(min(N_FOLDS, n_units), shuffle=True, random_state=seed)
    return folds.split(units, groups=units)


def calibrate_across(
    fitted: FittedDensities,
    left_out: np.ndarray,
    further_folds: Iterable[Fold],
    fit_fold: Callable[[np.ndarray, np.ndarray], FittedDensities],
    units: np.ndarray,
    false_alarms: FalseAlarms,
) -> FittedDensities:
    """Calibrate a model by its own left-out images, and those of others like it.

    Parameters
    ----------
    fitted : FittedDensities
        The model.
    left_out : ndarray of int
        Images that it has not learned from.
    further_folds : iterable of (ndarray of int, ndarray of int)
        Images to learn from and to leave out, of further models.
    fit_fold : callable
        Fits a model: takes a fold, and gives the left-out images as its calibration scores.
    units : ndarray of shape (n_images,)
    false_alarms : FalseAlarms
    """
    scores = np.empty(len(units))
    scores[left_out] = fitted.calibration_scores
    for train, others in further_folds:
        scores[others] = fit_fold(train, others).calibration_scores
    offset = false_alarms.threshold(scores, several_of_a_unit(units))
    return replace(fitted, calibration_scores=scores, calibration_units=units, offset=offset)
