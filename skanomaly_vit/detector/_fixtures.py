"""Fixtures: images with the numbers of each stage of scoring them, recorded with a model.

The same images, computed again on any machine, tell whether the model scores there as it did where
it was saved, and which stage differs if it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skanomaly_vit._backbone.activations import HeldActivations
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.discrepancy import DISCREPANCY, Embedded, n_rows
from skanomaly_vit._backbone.precision import BFLOAT16, FLOAT32
from skanomaly_vit._caching.memory import Memory
from skanomaly_vit._images.fixture_files import (
    RESIZING,
    compare_decoding,
    compare_resizing,
    digests_of,
    draw_files,
    open_files,
    sample_inputs,
    sample_pixels,
    sampled,
)
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import PLACE
from skanomaly_vit._utils.stages import Stage, largest
from skanomaly_vit.detector._feature_store import in_float64, in_shards
from skanomaly_vit.detector._fit_summary import n_images
from skanomaly_vit.detector._fusion import score_shards, sum_spaces

#: Features of an image that are recorded, of each view, at most.
_N_FEATURES = 32

#: Images of the fit whose scores, by the features in the file, are recorded, at most.
_N_KNOWN = 8

BACKBONE, STUDENTS, DENSITIES = "backbone", "students", "densities"

#: Largest differences that rounding explains, by the floating type of the backbone.
_ROUNDING = {
    FLOAT32: {RESIZING: 1e-5, BACKBONE: 1e-4, STUDENTS: 1e-3, DENSITIES: 2e-5},
    BFLOAT16: {RESIZING: 1e-5, BACKBONE: 0.2, STUDENTS: 0.05, DENSITIES: 2e-5},
}

#: Largest difference of a score that is the same, in standard deviations of calibration scores.
TOLERANCE = {FLOAT32: 0.001, BFLOAT16: 0.1}

_TINY = 1e-30


@dataclass(frozen=True)
class Numbers:
    """What each stage gives for the fixtures.

    Attributes
    ----------
    digests : list of str
        SHA-256 of the decoded pixels of each file.
    pixels : ndarray of shape (n,), float32
        Some of their values, in levels of 255.
    inputs : ndarray of shape (n_files, n), float32
        Some values of the input of the backbone, in shares of white.
    features : dict of str to ndarray of shape (n_files, n), float32
        Some of the features in each view.
    errors : ndarray of shape (n_files, n_blocks), float64
    scores : ndarray of shape (n_spaces, n_files), float64
        Scores by space, in the order of the densities.
    known : ndarray of shape (n_spaces, n), float64
        Scores of images of the fit, by the features that the file holds.
    """

    digests: list[str]
    pixels: np.ndarray
    inputs: np.ndarray
    features: dict[str, np.ndarray]
    errors: np.ndarray
    scores: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Fixtures:
    """Fixture images of a model, and what each stage gave for them.

    Attributes
    ----------
    files : list of bytes
        Image files.
    numbers : Numbers
    unit : float
        Standard deviation of the scores of normal images.
    """

    files: list[bytes]
    numbers: Numbers
    unit: float

    @classmethod
    def record(cls, detector: Any) -> Fixtures:
        """Draw images, and record what each stage gives for them here and now."""
        files = draw_files()
        return cls(files, _compute(detector, files), spread_of(detector))

    def compare(self, detector: Any) -> tuple[list[Stage], float]:
        """Stages beside those that were recorded, and the largest difference of a score.

        The unit of the latter is `unit`.
        """
        then, now = self.numbers, _compute(detector, self.files)
        rounding = _ROUNDING.get(detector.dtype_, _ROUNDING[FLOAT32])
        features = [_relative(now.features[view], rows) for view, rows in then.features.items()]
        stages = [
            compare_decoding((now.digests, now.pixels), (then.digests, then.pixels)),
            compare_resizing(now.inputs, then.inputs, rounding[RESIZING]),
            Stage(
                BACKBONE,
                max(features),
                "of the root mean square of features",
                rounding[BACKBONE],
                sum(rows.size for rows in then.features.values()),
            ),
        ]
        if then.errors.size:
            errors = largest(now.errors, then.errors, np.maximum(then.errors, _TINY))
            stages.append(
                Stage(STUDENTS, errors, "of an error", rounding[STUDENTS], then.errors.size)
            )
        known = largest(now.known, then.known, self.unit)
        stages.append(
            Stage(DENSITIES, known, "standard deviations", rounding[DENSITIES], then.known.size)
        )
        return stages, largest(now.scores.sum(axis=0), then.scores.sum(axis=0), self.unit)


def tolerance_of(detector: Any) -> float:
    """Largest difference of a score that counts as the same, in standard deviations."""
    return TOLERANCE.get(detector.dtype_, TOLERANCE[FLOAT32])


def spread_of(detector: Any) -> float:
    """Standard deviation of the scores of normal images: of those that calibrate, if any do."""
    scores, summary = detector.calibration_scores_, detector._fit_summary
    if (scores is None or len(scores) < 2) and summary is not None:
        learned = {space: rows.rows for space, rows in summary.learned.items()}
        scores = sum_spaces(detector._score([learned]))
    spread = 0.0 if scores is None else float(np.std(scores))
    return spread if spread > 0 else max(abs(float(detector.offset_)), 1.0)


def _compute(detector: Any, files: list[bytes]) -> Numbers:
    source = open_files(files, detector._fitted_framing)
    everything = range(len(source))
    decoded = [source[position] for position in everything]
    preprocessing = detector._held_teacher().preprocessing
    inputs = source.load(everything, preprocessing, detector.n_jobs).numpy()
    embedded = _embed(detector, source)
    errors = embedded.get(DISCREPANCY, np.empty((len(source), 0)))
    return Numbers(
        digests=digests_of(decoded),
        pixels=sample_pixels(decoded),
        inputs=sample_inputs(inputs, preprocessing.std),
        features={
            view: np.stack([sampled(row, _N_FEATURES) for row in rows]).astype(np.float32)
            for view, rows in embedded.items()
            if view != DISCREPANCY
        },
        errors=errors.astype(np.float64),
        scores=_score(detector, embedded),
        known=np.stack(list(_score_known(detector).values())),
    )


def _embed(detector: Any, source: ImageSource) -> Embedded:
    """Features by a pass of this process, which recalls nothing from `memory`."""
    teacher = detector._held_teacher()
    passes = CachedPasses(
        teacher,
        source,
        Memory(None),
        in_memory=HeldActivations(0),
        kept_blocks=(),
        store_tokens=False,
        batch_size=detector.batch_size,
        n_jobs=detector.n_jobs,
    )
    students = detector._students_on(teacher.device, detector.distillation_)
    return passes.extract(np.arange(len(source)), students)


def _score(detector: Any, embedded: Embedded) -> np.ndarray:
    """Scores by space (n_spaces, n_images); NaN if a feature is not finite, as densities refuse."""
    if not all(np.isfinite(rows).all() for rows in embedded.values()):
        return np.full((len(detector.density_), n_rows(embedded)), np.nan)
    if detector.tile_grid_ is not None:  # whole files have no place: each stands for one
        known = list(next(iter(detector.density_.values())).densities)
        places = np.resize(np.array(known, np.float64), (n_rows(embedded), 1))
        embedded = embedded | {PLACE: places}
    scores = score_shards(detector.density_, detector.fusion_, in_shards([embedded]))
    return np.stack(list(scores.values()))


def _score_known(detector: Any) -> dict[str, np.ndarray]:
    """Scores by space of some images of the fit, best of those that it has not learned from."""
    summary = detector._fit_summary
    if summary is None:  # of format 1
        return dict.fromkeys(detector.density_, np.empty(0))
    sample = summary.held_out if n_images(summary.held_out) else summary.learned
    columns = [*detector.density_, PLACE] if PLACE in sample else detector.density_
    rows = {space: sample[space].rows[:_N_KNOWN] for space in columns}
    return score_shards(detector.density_, detector.fusion_, [in_float64(rows)])


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of features, relative to their root mean square."""
    return largest(found, expected, max(float(np.sqrt(np.mean(expected**2))), _TINY))
