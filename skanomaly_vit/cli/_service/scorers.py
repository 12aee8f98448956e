"""One face of both kinds of detectors: verdicts on decoded images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.regions import fit_region
from skanomaly_vit._utils.settings import own_settings
from skanomaly_vit.cli._service.bodies import NotAnImageError
from skanomaly_vit.onnx import OnnxDetector
from skanomaly_vit.onnx._file import MAP, P_VALUE, SCORE

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model says of an image.

    `p_value` is None if the model has no calibration images. `anomaly_map` (h, w) is None unless
    it was asked for.
    """

    score: float
    decision: float
    p_value: float | None
    anomaly_map: Any = None

    @property
    def flag(self) -> bool:
        """Whether the image is an anomaly."""
        return self.decision < 0


class Scorer(ABC):
    """Scores decoded images with a detector.

    Attributes
    ----------
    threshold : float
    max_pixels : int or None
        Limit of the detector for one image.
    has_maps : bool
    roi : ndarray of shape (h, w), bool, or None
        The pixels that count in all images.
    """

    threshold: float
    max_pixels: int | None
    has_maps: bool
    roi: Array | None = None

    def check(self, pixels: Array) -> None:
        """Refuse an image that would spoil a pass for those beside it.

        Raises
        ------
        NotAnImageError
            If the region of interest does not fit the size of the image.
        """
        if self.roi is None:
            return
        (height, width), (rows, columns) = pixels.shape[:2], self.roi.shape
        try:
            counts = bool(fit_region(self.roi, (height, width)).any())
        except ValueError:
            counts = False
        if not counts:
            raise NotAnImageError(
                f"it has {width} x {height} pixels, which the region of interest of the model, "
                f"{columns} x {rows}, does not fit"
            )

    def score(self, images: list[Array], *, with_maps: bool = False) -> list[Verdict]:
        """Score images (h, w, 3) in one pass, each with its map if it is asked for."""
        scores, p_values, maps = self._compute(images, with_maps)
        if maps is None:
            maps = [None] * len(images)
        return [
            Verdict(float(score), float(score - self.threshold), _known(p_value), anomaly_map)
            for score, p_value, anomaly_map in zip(scores, p_values, maps, strict=True)
        ]

    @abstractmethod
    def _compute(self, images: list[Array], with_maps: bool) -> tuple[Any, Any, Any]:
        """Scores, p-values (NaN without calibration images), and maps or None."""


def scorer_of(detector: TransformalyDetector | OnnxDetector) -> Scorer:
    """The scorer of a detector of image files."""
    if isinstance(detector, OnnxDetector):
        return _OnnxScorer(detector)
    return _TorchScorer(detector)


class _OnnxScorer(Scorer):
    def __init__(self, detector: OnnxDetector) -> None:
        self._detector = detector
        self.threshold = detector.offset_
        self.max_pixels = detector.max_pixels
        self.roi = detector._framing.roi
        self.has_maps = MAP in detector.card["outputs"]
        self._has_p_values = P_VALUE in detector.card["outputs"]

    def _compute(self, images: list[Array], with_maps: bool) -> tuple[Any, Any, Any]:
        names = [SCORE] + [P_VALUE] * self._has_p_values + [MAP] * with_maps
        with own_settings():
            found = dict(zip(names, self._detector._run(images, *names), strict=True))
        return found[SCORE], found.get(P_VALUE, _unknown(images)), found.get(MAP)


class _TorchScorer(Scorer):
    def __init__(self, detector: TransformalyDetector) -> None:
        from skanomaly_vit.calibration._p_values import CalibrationScores

        self._detector = detector
        self.threshold = float(detector.offset_)
        self.max_pixels = detector.max_pixels
        self.roi = detector.roi_
        self.has_maps = _has_maps(detector)
        self._known = CalibrationScores.of(detector)

    def _compute(self, images: list[Array], with_maps: bool) -> tuple[Any, Any, Any]:
        detector, maps = self._detector, None
        if with_maps:
            scores, maps = detector.score_samples(images, return_map=True)
        else:
            scores = detector.score_samples(images)
        if self._known is None:
            return scores, _unknown(images), maps
        return scores, self._known.p_values(scores), maps


def _has_maps(detector: TransformalyDetector) -> bool:
    try:
        detector._map_collector(None)
    except ValueError:
        return False
    return True


def _unknown(images: list[Array]) -> Array:
    return np.full(len(images), np.nan)


def _known(p_value: float) -> float | None:
    return None if np.isnan(p_value) else float(p_value)
