"""Errors of students on images that they have learned from, and on others: never in one density.

An error is smaller on an image that a student has learned from. `fit` gives the density such
errors, and the calibration those of unseen images. An update must do the same, without the images
of earlier calls: it scales what it keeps of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import FitSummary, n_images
from skanomaly_vit.distillation import BlockDistillation
from skanomaly_vit.exceptions import CalibrationWarning


@dataclass(frozen=True)
class ErrorFactors:
    """Factors for errors, one for each block.

    Attributes
    ----------
    learned, held_out : ndarray of shape (n_blocks,)
        For errors of earlier images that the density has learned from, and that calibrate.
    new : ndarray of shape (n_blocks,)
        For errors of new images that the density is to learn from.
    """

    learned: np.ndarray
    held_out: np.ndarray
    new: np.ndarray

    @classmethod
    def of_new_students(
        cls,
        ratio: np.ndarray,
        before: BlockDistillation,
        passes: CachedPasses,
        store: FeatureStore,
        held_out: np.ndarray,
    ) -> ErrorFactors:
        """Factors where students have learned from the new images, too.

        Parameters
        ----------
        ratio : ndarray of shape (n_blocks,)
            See `BlockDistillation._updated`.
        before : BlockDistillation
            The students until now.
        passes : CachedPasses
            Over the new images.
        store : FeatureStore
            Errors of the new students.
        held_out : ndarray of bool
            Mask of the new images that neither have learned from; without any, earlier errors of
            such images stay.
        """
        ones = np.ones_like(ratio)
        if not held_out.any():
            return cls(ratio, ones, ones)
        students = before._students_on(passes.teacher.device)
        old = passes.extract(np.flatnonzero(held_out), students)[DISCREPANCY]
        new = store.rows(DISCREPANCY, held_out).gather()
        return cls(ratio, _ratio(new, old), ones)

    @classmethod
    def of_old_students(cls, summary: FitSummary, n_blocks: int) -> ErrorFactors:
        """Factors where students stay: those of seen images per unseen one, from a summary."""
        ones = np.ones(n_blocks)
        if n_images(summary.held_out):
            pair = (summary.learned[DISCREPANCY].rows, summary.held_out[DISCREPANCY].rows)
            return cls(ones, ones, _ratio(*pair))
        warn_user(
            "the students have learned from the images of fit and not from the new ones, and no "
            "image was held out that tells how much lower errors are on images that students "
            "have learned from: the density of the errors mixes both. Fit with "
            "validation_fraction > 0, or fit again to all images.",
            CalibrationWarning,
        )
        return cls(ones, ones, ones)


def _ratio(errors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean errors relative to other ones, block by block; 1 where there are none."""
    mean, other = (np.mean(each, axis=0, dtype=np.float64) for each in (errors, others))
    is_positive = (mean > 0) & (other > 0)
    return np.where(is_positive, mean / np.where(is_positive, other, 1.0), 1.0)
