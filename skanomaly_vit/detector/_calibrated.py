"""Thresholds, p-values and drift tests from held-out scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from sklearn.base import OutlierMixin, clone
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._images.opening import open_images, reading_options
from skanomaly_vit._images.units import find_units
from skanomaly_vit._utils.certificates import Certificate
from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit._utils.decisions import DecisionMixin
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.calibration import (
    conformal_threshold,
    drift_test,
    false_alarm_bound,
    threshold_bound,
)
from skanomaly_vit.calibration._p_values import CalibrationScores
from skanomaly_vit.detector._dataframes import score_frame
from skanomaly_vit.detector._groups import verdicts_of
from skanomaly_vit.exceptions import ThresholdWarning

#: Confidence of the bound of a threshold that was set without one.
_CONFIDENCE = 0.95


class CalibratedMixin(DecisionMixin, OutlierMixin):
    """Decisions, p-values and drift tests of an outlier detector with calibration scores.

    A subclass sets `calibration_scores_` (None if there are none) and `offset_` in `fit`, and takes
    the parameters `contamination` and `random_state`.
    """

    contamination: float
    random_state: int | np.random.RandomState | None
    calibration_scores_: np.ndarray | None
    calibration_units_: np.ndarray | None
    threshold_confidence_: float | None
    contamination_: float | None
    _is_cross_calibrated: bool
    _contamination_then: float  # the parameter when the threshold was set

    def _check_threshold(self) -> None:
        then = getattr(self, "_contamination_then", self.contamination)
        if self.contamination == then:
            return
        warn_user(
            f"contamination was changed from {then} to {self.contamination} "
            f"after the threshold was set at a false-alarm rate of {self.contamination_}, which "
            "is still in use. Call set_threshold(target_fpr=...), or fit again.",
            ThresholdWarning,
        )
        self._contamination_then = self.contamination  # once

    def __repr__(self, **options: Any) -> str:
        text = super().__repr__(**options)
        rate = getattr(self, "contamination_", None)
        if rate is None or rate == self.contamination:
            return text
        return f"{text}  # threshold set at a false-alarm rate of {rate}"

    def score_dataframe(self, frame: Any, column: str) -> Any:
        """Score a column of images and add the results to the table.

        Parameters
        ----------
        frame : DataFrame, or table of Arrow
            A DataFrame of pandas, Polars or Dask; or a Table, RecordBatch, RecordBatchReader or
            Dataset of Arrow.
        column : str
            The column that holds the images: paths, contents of image files (bytes), or any other
            form that a list of images may have.

        Returns
        -------
        scored : same as `frame`, or RecordBatchReader for a Dataset
            The table with the new columns ``score`` (float64, higher = more normal), ``decision``
            (float64, negative = anomaly), ``flag`` (bool, anomaly) and, if images were held out,
            ``p_value`` (float64, small = abnormal). A frame of Dask, a reader or a dataset is
            scored lazily, part by part.

        Raises
        ------
        ValueError
            If `frame` lacks the column or already has one of the new ones, or as `score_samples`
            does. A missing value (None, NaN, NA) counts as an unreadable image: with
            ``on_error="nan"`` its row gets NaN and is flagged.
        TypeError
            If `frame` is none of these tables.

        See Also
        --------
        score_samples : Scores a column alone.

        Notes
        -----
        Dask sends the detector to its workers without the backbone, which each process loads once
        (see `store_backbone`).

        Examples
        --------
        >>> import pandas as pd
        >>> from skanomaly_vit import TransformalyDetector
        >>> def most_abnormal(detector: TransformalyDetector, paths: list[str]) -> pd.DataFrame:
        ...     frame = detector.score_dataframe(pd.DataFrame({"path": paths}), "path")
        ...     return frame.sort_values("score").head(10)
        """
        check_is_fitted(self)
        return score_frame(self, frame, column)

    def score_groups(self, X: Any, groups: Any, *, aggregate: str = "max") -> Bunch:
        """Score groups of images, such as several views of one part: one verdict a group.

        The groups of the images that calibrate are scored alike, and set p-values and threshold:
        the rate of false alarms, `contamination_`, is one of groups.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes.
        groups : array-like of shape (n_images,)
            Group of each image, such as the number of its part. `fit` needs groups of the same
            kind, with as many images in each.
        aggregate : {"max", "mean"}, default="max"
            ``"max"`` is the score of the most abnormal image of a group, ``"mean"`` the mean.

        Returns
        -------
        verdicts : Bunch of ndarray of shape (n_groups,)
            ``groups`` (in the order in which they come), ``scores`` (float64, higher = more normal;
            NaN if an image is unreadable), ``p_values`` (float64, small = abnormal), ``labels``
            (+1 normal, -1 anomaly) and ``n_images``; and the numbers ``offset``, the threshold of
            groups, and ``n_calibrating``.

        Raises
        ------
        ValueError
            If `fit` had no groups of several images, `aggregate` or `groups` is not as described,
            or as `score_samples` does.

        Warns
        -----
        CalibrationWarning
            If groups have other numbers of images than those that calibrate, or too few groups
            calibrate for the rate.

        Examples
        --------
        >>> from skanomaly_vit import TransformalyDetector
        >>> def rejected(detector: TransformalyDetector, paths: list[str], parts: list[str]):
        ...     verdicts = detector.score_groups(paths, parts)
        ...     return verdicts.groups[verdicts.labels == -1]
        """
        known = self._require_calibration()
        rate = self.contamination if self.contamination_ is None else self.contamination_
        return verdicts_of(
            self.score_samples(X),
            groups,
            aggregate=aggregate,
            known=known,
            units=self.calibration_units_,
            rate=rate,
        )

    def set_threshold(self, *, target_fpr: float, confidence: float | None = None) -> Self:
        """Move the threshold, without fitting again.

        Parameters
        ----------
        target_fpr : float
            In (0, 1): share of normal images that may be flagged.
        confidence : float or None, default=None
            In (0, 1): the true share is at most `target_fpr` in this share of deployments, not only
            on average over them. 0.95 for 1 % takes 299 held-out images.

        Returns
        -------
        self : estimator
            With another `offset_`, `contamination_` and `threshold_confidence_`; parameters stay.

        Raises
        ------
        ValueError
            If `target_fpr` or `confidence` is out of range, too few images were held out for
            `confidence`, or none were; or if `confidence` is given and the images that calibrate
            are those of ``calibration="cross"``.

        Warns
        -----
        CalibrationWarning
            If too few images were held out for that rate.

        See Also
        --------
        skanomaly_vit.calibration.conformal_threshold : How the threshold is chosen.
        """
        known = self._require_calibration()
        if not 0 < target_fpr < 1:
            raise ValueError(f"target_fpr={target_fpr!r} is not in (0, 1)")
        if confidence is not None:
            self._require_split()
        self.offset_ = conformal_threshold(
            known, target_fpr, groups=self.calibration_units_, confidence=confidence
        )
        self.contamination_, self._contamination_then = target_fpr, self.contamination
        self.threshold_confidence_ = confidence
        return self

    def false_alarm_bound(self, *, confidence: float = 0.95) -> Bunch:
        """Bound the false-alarm rate of every threshold at once.

        Parameters
        ----------
        confidence : float, default=0.95
            Share of deployments in which all bounds hold together.

        Returns
        -------
        curve : Bunch
            ``threshold``, ``estimate`` and ``bound``; see
            `skanomaly_vit.calibration.false_alarm_bound`.

        Raises
        ------
        ValueError
            If `confidence` is out of range, no images were held out, or the images that calibrate
            are those of ``calibration="cross"``.
        """
        known = self._require_calibration()
        self._require_split()
        return false_alarm_bound(known, confidence=confidence, groups=self.calibration_units_)

    def _certificate(self) -> Certificate:
        """What is known of the false alarms of the threshold in use."""
        known, units = self.calibration_scores_, self.calibration_units_
        confidence, bound = self.threshold_confidence_, None
        if known is not None and (units is None or confidence is not None):
            bound = threshold_bound(
                known, self.offset_, confidence=confidence or _CONFIDENCE, groups=units
            )
        n_images = 0 if known is None else len(known)
        return Certificate(
            rate=self.contamination_,
            confidence=confidence,
            n_images=n_images,
            n_units=n_images if units is None else len(np.unique(units)),
            bound=bound,
            bound_confidence=None if bound is None else confidence or _CONFIDENCE,
        )

    def drift(self, X: Any, *, anomaly_share: float | None = None) -> Bunch:
        """Test whether a batch of mostly normal images has drifted from the training data.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes, chosen without regard to their scores. `drift`
            ignores unreadable ones if `on_error` allows them.
        anomaly_share : float or None, default=None
            Share in [0, 1) of the lowest scores that `drift` ignores, so that a few anomalies do
            not pass for drift. ``None`` is `contamination`.

        Returns
        -------
        test : Bunch
            ``p_value`` (small = drift), ``statistic``, ``direction`` and ``n_compared``; see
            `skanomaly_vit.calibration.drift_test`.

        Raises
        ------
        ValueError
            If no images were held out, or as `score_samples` does.
        """
        known = self._require_calibration()
        share = self.contamination if anomaly_share is None else anomaly_share
        scores = self.score_samples(X)
        return drift_test(known, scores[~np.isnan(scores)], anomaly_share=share)

    def audit(self, X: Any, *, groups: Any = None, cv: int = 5) -> Bunch:
        """Look for mistakes among the training images.

        A detector with the same parameters, fitted without the image, scores each image: images
        that a detector has learned from look more normal to it than they are.

        Parameters
        ----------
        X : images
            The images of `fit`, or others that should be normal.
        groups : array-like of shape (n_images,) or None, default=None
            Group of each image (camera, lot, day). A detector scores only groups that it has not
            seen.
        cv : int, default=5
            Number of fits; each leaves out an equal share of the images, and all copies of one.

        Returns
        -------
        audit : Bunch
            - ``scores``: ndarray of shape (n_images,), float64, low = suspicious: distance from
              the median score of held-out images, in interquartile ranges, which makes the
              detectors of different folds comparable.
            - ``order``: ndarray of shape (n_images,), int, positions in `X`, most suspicious first.

        Raises
        ------
        ValueError
            If `cv` exceeds the number of distinct images or of groups, or as `fit` does.

        Notes
        -----
        `audit` does not change the detector, which need not be fitted. With `memory`, images pass
        through the backbone once, not once per fold.
        """
        units = find_units(open_images(X, **reading_options(self)), groups)
        scores = np.empty(len(X))
        for train, test in self._folds(len(X), units.to_divide(groups), cv):
            chosen = {"groups": _safe_indexing(groups, train)} if groups is not None else {}
            fitted = clone(self).fit(_safe_indexing(X, train), **chosen)
            known = fitted._require_calibration()
            low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
            spread = high - low if high > low else 1.0
            scores[test] = (fitted.score_samples(_safe_indexing(X, test)) - middle) / spread
        return Bunch(scores=scores, order=np.argsort(scores, kind="stable"))

    def _p_values(self, X: Any) -> np.ndarray:
        known = CalibrationScores(self._require_calibration(), self.calibration_units_)
        return known.p_values(self.score_samples(X))

    def _folds(
        self, n_images: int, groups: Any, cv: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        kind = KFold if groups is None else GroupKFold
        # Drawing from a RandomState would change the state that `fit` of the clones sees.
        seed = self.random_state if isinstance(self.random_state, int) else 0
        folds = kind(cv, shuffle=True, random_state=seed)
        return folds.split(np.empty(n_images), groups=groups)

    def _require_split(self) -> None:
        if self._is_cross_calibrated:
            raise ValueError(
                f"{type(self).__name__} was fitted with calibration='cross', whose scores come "
                "from several models and certify no rate. Fit with calibration='split', or pass "
                "confidence=None."
            )

    def _require_calibration(self) -> np.ndarray:
        check_is_fitted(self)
        if self.calibration_scores_ is None:
            raise ValueError(
                f"{type(self).__name__} was fitted with validation_fraction=0, so it has no "
                "scores of held-out images. Fit with validation_fraction > 0."
            )
        return self.calibration_scores_
