"""Scores and anomaly maps of a fitted detector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.anomaly_maps import MapCollector, enlarge
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED, Embedded
from skanomaly_vit._backbone.image_estimator import ImageEstimator
from skanomaly_vit._backbone.patches import METHODS, NormalPatches
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._backbone.views import Readout
from skanomaly_vit._images.missing import fill_maps, fill_scores, warn_gaps
from skanomaly_vit._images.regions import Framing
from skanomaly_vit._images.score_stream import Scores, ScoreStreamMixin
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import TiledSource, merge_maps, merge_scores, tile
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.calibration._p_values import CalibrationScores
from skanomaly_vit.detector._calibrated import CalibratedMixin
from skanomaly_vit.detector._feature_store import in_shards
from skanomaly_vit.detector._fusion import score_shards, sum_spaces
from skanomaly_vit.distillation import BlockDistillation
from skanomaly_vit.features import ViTFeatures


class ScoringDetector(CalibratedMixin, ScoreStreamMixin, ImageEstimator):
    """Detector that scores images by densities in feature spaces, and maps them."""

    on_error: str
    feature_spaces: str
    features_: ViTFeatures
    distillation_: BlockDistillation | None
    density_: dict[str, Any]
    fusion_: dict[str, tuple[float, float]]
    tile_grid_: tuple[int, int] | None
    _fitted_framing: Framing
    _normal_patches: NormalPatches | None

    @with_own_settings
    def score_samples(self, X: Any, *, return_map: bool = False) -> Any:
        """Score normality: the sum of an image's scores in both spaces, as `fusion` says.

        By default this is no log-likelihood, but a sum of standardized scores: the unit is the
        standard deviation of the scores that training images have when the density leaves them out.
        With ``fusion="product"`` it is the sum of log-likelihoods.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes.
        return_map : bool, default=False
            Whether to return the anomaly maps as well, from the same pass of the backbone.

        Returns
        -------
        scores : ndarray of shape (n_images,), float64
            Higher = more normal.
        maps : ndarray of shape (n_images, height, width), float32, or list
            Only with `return_map`: the maps of `anomaly_map`. Higher = more abnormal.

        Raises
        ------
        ValueError
            If the images are not as described, or one is unreadable (`on_error`).
        """
        if return_map:
            return self._score_and_map(X)
        return sum_spaces(self._score_parts(X))

    @with_own_settings
    def anomaly_map(self, X: Any, method: str | None = None) -> Any:
        """Map where images are abnormal.

        A map gives each patch of the backbone its distance from the patches of normal images, and
        interpolates linearly in between. It is as fine as the patches: a larger `image_size` gives
        a finer map and takes longer.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes.
        method : {"discrepancy", "features", "both"} or None, default=None
            ``"discrepancy"``: the log error of each block's student on the token of the patch,
            standardized by mean and deviation on normal patches, averaged over the blocks.
            ``"features"``: the log Mahalanobis distance of the patch's token after the middle
            block from the tokens of normal patches, standardized likewise. ``"both"``: the mean
            of both. ``None`` is ``"features"``, or ``"discrepancy"`` if `feature_spaces` says so.

        Returns
        -------
        maps : ndarray of shape (n_images, height, width), float32, or list
            At the images' own sizes; a list of arrays (height, width) if the sizes differ or an
            image is unreadable, whose map has the shape (0, 0). The unit is the standard deviation
            of normal patches that students have not seen; 0 is their mean. Higher = more abnormal.

        Raises
        ------
        ValueError
            If the images are not as described, one is unreadable (`on_error`), `method` needs
            students but `fit` trained none, or the backbone does not tell the size of its patches.
        """
        source = self._open_images(X, on_error=self.on_error)
        collector = self._map_collector(method)
        inputs = self._inputs_of(source)
        passes = self._passes(self._held_teacher(), inputs)
        students: dict[int, torch.nn.Module] = {}
        if collector.needs_students:
            students = self._students_on(passes.teacher.device, self.distillation_)
        for _ in passes.stream(np.arange(len(inputs)), students, collector):
            pass  # the collector takes all that a map needs
        maps = self._maps(collector, inputs, source)
        warn_gaps(source)
        return maps

    @with_own_settings
    def score_spaces(self, X: Any) -> Bunch:
        """Score images in each feature space; `score_samples` is the sum.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes.

        Returns
        -------
        scores : Bunch of ndarray of shape (n_images,), float64
            ``pretrained``, the sum of all views, and ``discrepancy``, if in `feature_spaces`.
            Higher = more normal.

        Raises
        ------
        ValueError
            If the images are not as described, or one is unreadable (`on_error`).

        See Also
        --------
        score_views : The terms of ``pretrained``.
        """
        parts, scores = self._score_parts(X), Bunch()
        views = _views_of(parts)
        if views:
            scores[PRETRAINED] = sum_spaces(views)
        if DISCREPANCY in parts:
            scores[DISCREPANCY] = parts[DISCREPANCY]
        return scores

    @with_own_settings
    def score_views(self, X: Any) -> Bunch:
        """Score images in each view of the pre-trained space, whose sum `score_spaces` gives.

        Parameters
        ----------
        X : images
            Images of any form that `fit` takes.

        Returns
        -------
        scores : Bunch of ndarray of shape (n_images,), float64
            A score under the name of each view, such as ``scores["max_patch"]``; nothing with
            ``feature_spaces="discrepancy"``. Higher = more normal.

        Raises
        ------
        ValueError
            If the images are not as described, or one is unreadable (`on_error`).

        See Also
        --------
        score_spaces : Their sum, and the discrepancy space.
        """
        return Bunch(**_views_of(self._score_parts(X)))

    def _score_parts(self, X: Any) -> dict[str, np.ndarray]:
        """Scores in each view, and in the discrepancy space; NaN for unreadable images."""
        source = self._open_images(X, on_error=self.on_error)
        inputs = self._inputs_of(source)
        found = self._score(self._extract(inputs))
        scores = merge_scores(found, inputs, source)
        return fill_scores(scores, source.readable(), source)

    @with_own_settings
    def _score_and_map(self, X: Any, method: str | None = None) -> tuple[np.ndarray, Any]:
        source = self._open_images(X, on_error=self.on_error)
        inputs = self._inputs_of(source)
        collector = self._map_collector(method)
        found = self._score(self._extract(inputs, collector))
        scores = merge_scores(found, inputs, source)
        scored = source.readable()
        maps = self._maps(collector, inputs, source)
        return sum_spaces(fill_scores(scores, scored, source)), maps

    @staticmethod
    def _maps(collector: MapCollector, inputs: ImageSource, source: ImageSource) -> Any:
        maps = fill_maps(collector.maps(), inputs.readable(), inputs, enlarge)
        return merge_maps(maps, inputs, source)

    def _map_collector(self, method: str | None) -> MapCollector:
        """Make a collector of maps by the `method` of `anomaly_map`."""
        if method not in (None, *METHODS):
            raise ValueError(f"method={method!r} is not one of {METHODS}, or None")
        if self._normal_patches is None:
            raise ValueError(
                "The backbone does not tell the size of its patches (patch_embed.patch_size), so "
                "there are no anomaly maps. Use a ViT of timm, or give the network that attribute "
                "and fit again."
            )
        if method is None:
            method = DISCREPANCY if self.feature_spaces == DISCREPANCY else "features"
        if method not in self._normal_patches.map_scale:
            raise ValueError(
                f"method={method!r} needs students, and fit trains none with "
                f"feature_spaces={self.feature_spaces!r}. Pass method='features', or fit with "
                "feature_spaces='both'."
            )
        return MapCollector(self._normal_patches, method)

    def _held_teacher(self) -> Teacher:
        self.features_.set_params(device=self.device)  # it may have changed since `fit`
        teacher = self.features_._held_teacher()
        if self.distillation_ is None:
            return teacher
        readout = Readout(teacher.views, self.distillation_._readout().pooling)
        self.features_._teacher = teacher.reading(readout)  # kept, with what it learns of memory
        return self.features_._teacher

    def _open_images(self, X: Any, *, on_error: str) -> ImageSource:
        check_is_fitted(self)
        return self._open(X, reset=False, on_error=on_error)

    def _score_batches(self, source: ImageSource) -> Iterator[Scores]:
        """Yield scores and p-values of the readable images of a source, batch by batch."""
        inputs = self._inputs_of(source)
        scores: Iterator[np.ndarray] = (
            sum_spaces(self._score([batch])) for batch in self._extract(inputs)
        )
        if isinstance(inputs, TiledSource):
            scores = inputs.worst_in_order(scores, source)
        known = CalibrationScores.of(self)  # sorted once, not for each batch
        for of_images in scores:
            yield of_images, _p_values(known, of_images)

    def _score(self, batches: Iterable[Embedded]) -> dict[str, np.ndarray]:
        return score_shards(self.density_, self.fusion_, in_shards(batches))

    def _inputs_of(self, source: ImageSource) -> ImageSource:
        """Inputs of the backbone: the images, or their tiles.

        Raises
        ------
        ValueError
            If an image has a tile at a place without a density.
        """
        if source.framing.tiles is None:
            return source
        inputs = tile(source, self._held_teacher().preprocessing.image_size)
        if self.tile_grid_ is not None and isinstance(inputs, TiledSource):
            places = next(iter(self.density_.values())).densities
            inputs.require_grid(self.tile_grid_, places.keys())
        return inputs

    def _extract(
        self, inputs: ImageSource, collector: MapCollector | None = None
    ) -> Iterator[Embedded]:
        """Features of readable inputs in order, batch by batch; with the places of tiles."""
        passes, students = self._scoring_passes(inputs)
        batches = passes.stream(np.arange(len(inputs)), students, collector)
        if self.tile_grid_ is not None and isinstance(inputs, TiledSource):
            batches = inputs.with_places(batches)
        return batches

    def _scoring_passes(
        self, source: ImageSource
    ) -> tuple[CachedPasses, dict[int, torch.nn.Module]]:
        passes = self._passes(self._held_teacher(), source)
        return passes, self._students_on(passes.teacher.device, self.distillation_)

    @staticmethod
    def _students_on(
        device: torch.device, distillation: BlockDistillation | None
    ) -> dict[int, torch.nn.Module]:
        return distillation._students_on(device) if distillation else {}


def _p_values(known: CalibrationScores | None, scores: np.ndarray) -> np.ndarray:
    """P-values of scores; NaN without calibration scores."""
    return np.full(len(scores), np.nan) if known is None else known.p_values(scores)


def _views_of(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of the views alone, by name."""
    return {name: values for name, values in scores.items() if name != DISCREPANCY}
