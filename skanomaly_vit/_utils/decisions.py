"""Decisions and p-values of a detector that has `score_samples`: numpy alone, no scikit-learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class DecisionMixin(ABC):
    """Threshold, labels and p-values from scores.

    A subclass sets `offset_`, computes scores in `score_samples`, higher = more normal, and
    p-values in `_p_values`. For an unreadable image both give NaN.
    """

    offset_: float

    @abstractmethod
    def score_samples(self, X: Any) -> Any: ...

    @abstractmethod
    def _p_values(self, X: Any) -> np.ndarray:
        """P-values as `p_values` describes them; a ValueError without held-out images."""

    def _check_threshold(self) -> None:  # noqa: B027 - a hook that may do nothing
        """Warn if parameters say another threshold than the one that is in use."""

    def decision_function(self, X: Any) -> np.ndarray:
        """Score of images relative to the threshold.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.

        Returns
        -------
        decision : ndarray of shape (n_images,), float64
            ``score_samples(X) - offset_``: negative = anomaly.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be read (`on_error`).
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Tell normal images from anomalies.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.

        Returns
        -------
        labels : ndarray of shape (n_images,), int
            +1 for a normal image; -1 for an anomaly or an unreadable image.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be read (`on_error`).
        """
        self._check_threshold()
        # In this form, since every comparison with NaN is false.
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: Any) -> np.ndarray:
        """Compute the p-value of each image under the hypothesis that it is normal.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.

        Returns
        -------
        p_values : ndarray of shape (n_images,), float64
            Split-conformal p-values in (0, 1], small = abnormal: on average over held-out images,
            at most a share `a` of normal images has a p-value up to `a`. With n held-out images
            the smallest possible one is ``1 / (n + 1)``. NaN for an unreadable image. After a fit
            with ``calibration="cross"``, all images count and the share holds approximately.

        Raises
        ------
        ValueError
            If the detector was fitted without held-out images, or as `score_samples` does.

        See Also
        --------
        skanomaly_vit.calibration.benjamini_hochberg : Flags a batch by its p-values.
        """
        return self._p_values(X)
