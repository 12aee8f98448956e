"""Updates of a fitted detector: more normal images to learn from, or to calibrate with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import merge_scores, rows_of
from skanomaly_vit._images.units import UNIT, Units, find_units
from skanomaly_vit._utils.blas import one_blas_thread
from skanomaly_vit._utils.compat import _fit_context
from skanomaly_vit._utils.labels import warn_about_labels
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.detector._feature_store import FeatureStore, in_shards
from skanomaly_vit.detector._fit_summary import (
    FitSummary,
    draw_held_out,
    n_images,
    shards_of_sample,
    whole_images,
)
from skanomaly_vit.detector._fusion import (
    FalseAlarms,
    FittedDensities,
    score_shards,
    score_units,
    several_of_a_unit,
    weighted,
)
from skanomaly_vit.detector._fusion_weights import learn_weights, left_out_scores
from skanomaly_vit.detector._near_copies import one_of_each_unit, warn_of_near_copies
from skanomaly_vit.detector._partial_fit import (
    require_not_learned,
    require_not_normal,
    require_summary,
    require_updatable,
    require_whole_images,
    update_densities,
)
from skanomaly_vit.detector._recipes import resolve
from skanomaly_vit.detector._scoring import ScoringDetector
from skanomaly_vit.detector._seen_errors import ErrorFactors
from skanomaly_vit.detector._update_log import log_entry
from skanomaly_vit.detector._verifying import VerifiableMixin
from skanomaly_vit.distillation import BlockDistillation


class UpdatableDetector(VerifiableMixin, ScoringDetector):
    """Detector whose model can learn from more images, or calibrate with them, after `fit`."""

    validation_fraction: float
    activation_cache: int
    fusion_weights_: dict[str, float]
    recipe_: Bunch
    validation_indices_: np.ndarray
    n_samples_fit_: int
    _fit_summary: FitSummary | None
    _calibration_ids: np.ndarray | None  # of the unit of each calibration image, if known
    _updates: list[dict[str, Any]]  # what was added since `fit`, for the model card

    @abstractmethod
    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Learn what normal images look like."""

    @_fit_context(prefer_skip_nested_validation=False)
    @with_own_settings
    def partial_fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Update the detector with more normal images, without the earlier ones.

        Up to rounding, the density of the pre-trained space and ridge students become those of all
        images so far; the density of the errors, scale and threshold follow. Other students stay as
        `fit` left them, and so do `validation_indices_`. The first call is a `fit`.

        Parameters
        ----------
        X : images
            Normal images of any form that `fit` takes. `partial_fit` holds out each image for
            calibration with a probability of `validation_fraction`. The draw depends on the
            image's content (or its group), neither on the order nor on the parts in which images
            come. An image that `fit` has learned from, or held out, keeps its side.
        y : array-like of shape (n_images,) or None, default=None
            Ignored, but for a `LabelWarning` if it marks anomalies in `X`.
        groups : array-like of shape (n_images,) or None, default=None
            As in `fit`; a group of an earlier call keeps its side.

        Returns
        -------
        self : TransformalyDetector
            Fitted.

        Raises
        ------
        ValueError
            If the images are not as described, one is unreadable, a density cannot learn from
            more images (`GaussianDensity` and `ExcessDensity` can, and `KNNDensity` without a PCA),
            or `fit` used ``calibration="cross"`` or ``tile_density="position"``; or if more than
            2048 tiles calibrate.

        Warns
        -----
        CalibrationWarning
            If too few images are held out for a threshold at `contamination`, or held-out ones have
            near copies (frames of a video) among those learned from; or if students stay as they
            are and no image is held out, so that the density of the errors mixes those of images
            that students have learned from, and of others.

        Notes
        -----
        `partial_fit` computes scale, `calibration_scores_` and threshold again from the features
        that the detector keeps: those of at most 2048 images that densities have learned from, and
        of at most 2048 held-out ones. It scales the errors among them, block by block, as the mean
        error of the students changes; see docs/how_to/large_data.md.
        """
        if not hasattr(self, "density_"):
            return self.fit(X, y, groups)
        self._validate_params()  # scikit-learn's decorator does so in the first call alone
        self._require_same_recipe()
        if self._is_cross_calibrated:
            raise ValueError(
                "fit used calibration='cross', and partial_fit cannot leave images out of what "
                "was learned before. Fit again to all images, or fit with calibration='split'; "
                "calibrate(X, replace=True) makes room for partial_fit, too."
            )
        if self.tile_grid_ is not None:
            raise ValueError(
                "fit used tile_density='position', and densities of places cannot learn from more "
                "images. Fit again to all images, or with tile_density='shared'."
            )
        summary = require_updatable(self.density_, self._fit_summary)  # before any work
        if self._fitted_framing.tiles is not None:
            require_whole_images(summary)
        warn_about_labels(y)
        source = self._open(X, reset=False)
        self._update(source, find_units(source, groups), summary)
        return self

    @with_own_settings
    def calibrate(
        self, X: Any, y: Any = None, *, groups: Any = None, replace: bool = False
    ) -> Self:
        """Add normal images to those that set the threshold, and to no others.

        Densities, students and scale stay as they are; the threshold moves, at the same rate of
        false alarms. An image, or a group, that calibrates already is the same unit again.

        Parameters
        ----------
        X : images
            Normal images of any form that `fit` takes, which the detector has not learned from.
        y : array-like of shape (n_images,) or None, default=None
            Ignored, but for a `LabelWarning` if it says that there are anomalies among `X`.
        groups : array-like of shape (n_images,) or None, default=None
            As in `fit`.
        replace : bool, default=False
            Whether `X` takes the place of the images that calibrated so far, for instance after
            the line has changed.

        Returns
        -------
        self : TransformalyDetector
            With other `calibration_scores_` and `offset_`.

        Raises
        ------
        ValueError
            If the images are not as described, one cannot be read, or the detector has learned from
            one of them.

        Warns
        -----
        CalibrationWarning
            If there are too few images for a threshold at that rate, or they have near copies among
            those learned from.
        """
        check_is_fitted(self)
        warn_about_labels(y)
        source = self._open(X, reset=False)
        units = find_units(source, groups)
        summary = self._fit_summary
        if summary is not None:
            require_not_learned(units, summary)
        inputs = self._inputs_of(source)
        columns = units.columns_of(inputs, places=self.tile_grid_ is not None)
        passes, _ = self._scoring_passes(inputs)
        with self._embed_all(passes, self.distillation_, columns) as store:
            everyone = np.ones(len(store), dtype=bool)
            scores, _ = score_units(self.density_, self.fusion_, store.embedded(everyone))
            if summary is not None:
                known = summary.without_held_out() if replace else summary
                new = FitSummary.of(store, ~everyone, everyone, {})
                if inputs is source:
                    warn_of_near_copies(new.held_out, one_of_each_unit(summary.learned))
                summary = known.merge(new, known.statistics)
        known_scores, known_units = self._known_calibration(replace)
        scores = np.concatenate([known_scores, scores])
        ids = np.concatenate([known_units, units.units])
        self.offset_ = self._false_alarms().threshold(scores, several_of_a_unit(ids))
        self._set_calibration(scores, ids)
        self._fit_summary = summary
        self._is_cross_calibrated = self._is_cross_calibrated and not replace
        self._log("calibrate", units, len(units.units))
        return self

    @with_own_settings
    def tune_fusion(self, X: Any = None) -> Self:
        """Weigh the feature spaces by the few defects that are known.

        Densities, students and the images that set the threshold stay those of normal images; the
        threshold moves with the scores, at the same rate of false alarms. One to some twenty
        defects are enough; the fewer, the nearer the weights stay to equal ones. Kinds of defects
        that were not given can lose a little: docs/how_to/known_defects.md has figures.

        Parameters
        ----------
        X : images or None, default=None
            Known defects, images of any form that `fit` takes, each with one. ``None`` makes all
            weights equal again, as `fit` leaves them.

        Returns
        -------
        self : TransformalyDetector
            With other `fusion_weights_`, `fusion_`, `calibration_scores_` and `offset_`.

        Raises
        ------
        ValueError
            If the images are not as described or the detector knows one of them as normal; or if
            `fit` used ``tile_density="position"``, ``calibration="cross"``,
            ``fusion="product"``, or one space only; or if more than 2048 tiles calibrate.

        Warns
        -----
        CalibrationWarning
            If too few images calibrate for a threshold at that rate.

        Notes
        -----
        The weights minimize a convex function: the logistic loss that tells the defects from the
        training images, each left out of the densities, plus the squared distance from equal
        weights, divided by the number of defects. Of more than 2048 images that calibrate, those
        whose features the detector keeps set the threshold (see `partial_fit`). An image of
        several tiles counts by the one that scores lowest with equal weights.
        """
        check_is_fitted(self)
        summary = self._require_tunable()
        weights = dict.fromkeys(self.fusion_, 1.0)
        base = weighted(self.fusion_, {s: 1 / w for s, w in self.fusion_weights_.items()})
        if X is not None:
            source = self._open(X, reset=False)
            units = find_units(source)
            require_not_normal(units, summary)
            inputs = self._inputs_of(source)
            rows = score_shards(self.density_, base, in_shards(self._extract(inputs)))
            found = merge_scores(rows, inputs, source)
            learned = shards_of_sample(whole_images(summary.learned))
            normal = left_out_scores(self.density_, base, learned)
            weights = learn_weights(normal, found)
        fusion = weighted(base, weights)
        known = summary.held_out if n_images(summary.held_out) else whole_images(summary.learned)
        scores, ids = score_units(self.density_, fusion, shards_of_sample(known))
        if n_images(summary.held_out):
            self.offset_ = self._false_alarms().threshold(scores, several_of_a_unit(ids))
            self._set_calibration(scores, ids)
        else:
            self.offset_ = float(np.percentile(scores, 100.0 * self._false_alarms().rate))
        self.fusion_, self.fusion_weights_ = fusion, weights
        self._fixtures = None
        if X is not None:
            self._log("tune_fusion", units, 0)
        return self

    def _require_tunable(self) -> FitSummary:
        reasons = {
            "fit used tile_density='position', whose densities leave no image out": (
                self.tile_grid_ is not None
            ),
            "fit used calibration='cross', whose images several models scored": (
                self._is_cross_calibrated
            ),
            "fit used fusion='product', whose log-likelihoods have no weights": (
                self.recipe_.fusion == "product"
            ),
            "there is one feature space only": len(self.fusion_) < 2,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"the weights of feature spaces cannot be tuned: {reason}")
        summary = require_summary(self._fit_summary)
        return summary if self._fitted_framing.tiles is None else require_whole_images(summary)

    def _known_calibration(self, replace: bool) -> tuple[np.ndarray, np.ndarray]:
        """Scores that calibrate so far, and their units: ids below 0 where they are not known."""
        if replace or self.calibration_scores_ is None:
            return np.empty(0), np.empty(0)
        own = -1.0 - np.arange(len(self.calibration_scores_))
        units = own if self._calibration_ids is None else self._calibration_ids
        return self.calibration_scores_, units

    def _update(self, source: ImageSource, units: Units, summary: FitSummary) -> None:
        false_alarms, known = self._false_alarms(), self.distillation_
        of_images = draw_held_out(units, summary, self.validation_fraction)
        inputs = self._inputs_of(source)
        held_out = np.isin(np.arange(len(inputs)), rows_of(inputs, np.flatnonzero(of_images)))
        passes = self._updating_passes(inputs)
        grown = known._updated(passes, np.flatnonzero(~held_out)) if known else None
        distillation = grown[0] if grown else known
        normal_patches = self._normal_patches
        with self._embed_all(passes, distillation, units.columns_of(inputs)) as store:
            factors = None
            if known and grown:
                factors = ErrorFactors.of_new_students(grown[1], known, passes, store, held_out)
                if normal_patches is not None:
                    unseen = len(self.validation_indices_) > 0
                    normal_patches = normal_patches.scaled(
                        factors.held_out if unseen else factors.learned
                    )
            elif known:
                factors = ErrorFactors.of_old_students(summary, len(known.block_indices_))
            with one_blas_thread(store.n_values):
                fitted = update_densities(
                    self.density_,
                    summary,
                    store,
                    held_out,
                    factors=factors,
                    fusion=self.recipe_.fusion,
                    false_alarms=false_alarms,
                    weights=self.fusion_weights_,
                )
            if inputs is source:
                learned = one_of_each_unit(fitted.summary.learned)
                warn_of_near_copies(fitted.summary.held_out, learned)
        # Last, so that an update that fails leaves the old state whole.
        self._set_densities(fitted, false_alarms)
        self.distillation_, self._normal_patches = distillation, normal_patches
        self.n_samples_fit_ += len(source)
        self._log("partial_fit", units, of_images.sum())

    def _log(self, what: str, units: Units, n_calibrating: int) -> None:
        # A new list: a copy of the detector keeps the old one.
        self._updates = [*self._updates, log_entry(what, units.contents, n_calibrating)]

    def _updating_passes(self, source: ImageSource) -> CachedPasses:
        """Passes that keep tokens, since students may see images before they are scored."""
        blocks = self.distillation_.block_indices_ if self.distillation_ else ()
        return self._passes(
            self._held_teacher(), source, activation_cache=self.activation_cache, kept_blocks=blocks
        )

    def _require_same_recipe(self) -> None:
        """Refuse parameters that were changed since `fit`, and would be ignored."""
        values = resolve(self)
        for name in ("fusion", "pca_variance", "views", "pooling"):
            if values[name] != self.recipe_[name]:
                raise ValueError(
                    f"{name} was {self.recipe_[name]!r} in fit and is {values[name]!r} now; "
                    "partial_fit goes on with the first. Set it back, or fit again."
                )
        if self.dtype != self.features_.dtype:
            raise ValueError(
                f"dtype was {self.features_.dtype!r} in fit and is {self.dtype!r} now; features of "
                "both do not go together. Set it back, or fit again."
            )

    def _false_alarms(self) -> FalseAlarms:
        """Rate that the threshold was set at, and has to keep."""
        rate = self.contamination if self.contamination_ is None else self.contamination_
        return FalseAlarms(rate, self.threshold_confidence_)

    @contextmanager
    def _embed_all(
        self,
        passes: CachedPasses,
        distillation: BlockDistillation | None,
        columns: dict[str, np.ndarray],
    ) -> Iterator[FeatureStore]:
        """Features of all images of some passes, with the columns of their units."""
        students = self._students_on(passes.teacher.device, distillation)
        with FeatureStore() as store:
            keep = store.append_with(columns)
            for embedded in passes.stream(np.arange(len(columns[UNIT])), students):
                keep(embedded)
            yield store

    def _set_calibration(self, scores: np.ndarray | None, ids: np.ndarray | None) -> None:
        """Set the scores that calibrate, and the ids of their units, if these are known."""
        self.calibration_scores_, self._calibration_ids = scores, ids
        self.calibration_units_ = several_of_a_unit(ids)
        self._fixtures = None  # what was recorded is of other scores

    def _set_densities(self, fitted: FittedDensities, false_alarms: FalseAlarms) -> None:
        self.density_, self.fusion_ = fitted.density, fitted.fusion
        self._set_calibration(fitted.calibration_scores, fitted.calibration_units)
        self.offset_ = fitted.offset
        self.contamination_ = false_alarms.rate
        self.threshold_confidence_ = false_alarms.confidence
        self._contamination_then = self.contamination
        self._fit_summary = fitted.summary
