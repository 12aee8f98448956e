"""Labelled images of an evaluation: checked, and without those that a detector knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skanomaly_vit._images.source import open_images, reading_options
from skanomaly_vit._images.units import find_units
from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit._utils.detectors import normality, require_normality
from skanomaly_vit._utils.labels import as_labels, as_objects, is_auto, which_are_anomalies
from skanomaly_vit.exceptions import UnreadableImageError

KNOWN_IMAGES = ("raise", "leave_out")


@dataclass(frozen=True)
class Labelled:
    """Images that count in an evaluation.

    Attributes
    ----------
    X : images
        All images that were given.
    kept : ndarray of int
        Positions in `X` of those that count.
    is_anomaly : ndarray of shape (n_kept,), bool
    kinds : ndarray of shape (n_kept,), dtype object
    n_copies : int
        Images among them that repeat another one.
    is_checked : bool
        Whether it is known that the detectors have not seen them.
    """

    X: Any
    kept: np.ndarray
    is_anomaly: np.ndarray
    kinds: np.ndarray
    n_copies: int
    is_checked: bool

    @property
    def n_left_out(self) -> int:
        """Images that do not count, since a detector knows them."""
        return len(self.X) - len(self.kept)

    def score(self, detector: Any) -> np.ndarray:
        """Scores of the images that count, higher = more normal; a ValueError if one has none."""
        chosen = self.X if not self.n_left_out else _safe_indexing(self.X, self.kept)
        scores = np.asarray(normality(detector, chosen), dtype=np.float64)
        if scores.shape != (len(self.kept),):
            raise ValueError(
                f"{type(detector).__name__} gave scores of shape {scores.shape} for "
                f"{len(self.kept)} images; a detector gives one score an image"
            )
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} of {len(scores)} images have no finite score (the first one is "
                f"sample {self.kept[wrong[0]]}: {scores[wrong[0]]}); leave out images that cannot "
                "be read"
            )
        return scores

    def remarks(self) -> Iterator[str]:
        """What is not known of the images, in sentences."""
        if not self.is_checked:
            yield (
                "Whether the detector knows some of these images could not be checked; such "
                "images would flatter it."
            )
        if self.n_copies:
            yield (
                f"{self.n_copies} images are copies of others: the intervals are narrower than "
                "they should be."
            )


def gather_labelled(
    detectors: Sequence[Any], X: Any, y: Any, kinds: Any, anomaly_label: Any, known_images: str
) -> Labelled:
    """Check images and labels, and find those that a detector knows, by their content.

    Raises
    ------
    ValueError
        See `evaluate_fitted`.
    """
    if known_images not in KNOWN_IMAGES:
        raise ValueError(f"known_images={known_images!r} is not one of {list(KNOWN_IMAGES)}")
    for detector in detectors:
        require_normality(detector)
    is_anomaly = which_are_anomalies(y, anomaly_label)
    labels = _kinds_of(y, anomaly_label) if kinds is None else as_labels(kinds, "kinds")
    for name, values in (("y", is_anomaly), ("kinds", labels)):
        if len(values) != len(X):
            raise ValueError(
                f"{name} holds {len(values)} labels for {len(X)} images; pass one each"
            )
    known, contents, is_checked = _look_into(detectors, X)
    _require_one_label(contents, is_anomaly)
    if known_images == "raise":
        _require_new(known)
    kept = np.flatnonzero(~known.any(axis=0))
    _require_both_kinds(is_anomaly[kept], len(X) - len(kept))
    n_copies = len(kept) - len(np.unique(contents[kept]))
    return Labelled(X, kept, is_anomaly[kept], as_objects(labels)[kept], n_copies, is_checked)


def _kinds_of(y: Any, anomaly_label: Any) -> list[Any]:
    """Labels as kinds of defects; a sign is no kind."""
    labels = as_labels(y)
    return ["anomaly"] * len(labels) if is_auto(anomaly_label) else labels


def _look_into(detectors: Sequence[Any], X: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images that a detector has learned from, and that calibrate one; contents; if all is known.

    The first has the shape (2, n_images).
    """
    known = np.zeros((2, len(X)), dtype=bool)
    try:
        units = find_units(open_images(X, **reading_options(detectors[0])))
    except UnreadableImageError:
        raise
    except (TypeError, ValueError):  # samples of another kind: features, tables
        return known, np.arange(float(len(X))), False
    summaries = [getattr(detector, "_fit_summary", None) for detector in detectors]
    # Files of older formats have no summary, or no units in it.
    held = [each for each in summaries if each is not None and len(each.learned_units)]
    for summary in held:
        known[0] |= units.any_in(summary.learned_units)
        known[1] |= units.any_in(summary.held_out_units)
    return known, units.contents, len(held) == len(detectors)


def _require_new(known: np.ndarray) -> None:
    """Refuse images that a detector knows."""
    is_learned, is_calibrating = known
    first = np.flatnonzero(is_learned | is_calibrating)[:1]
    if len(first):
        raise ValueError(
            f"the detector has learned from {is_learned.sum()} of {len(is_learned)} images, and "
            f"{(is_calibrating & ~is_learned).sum()} others set its threshold (the first one is "
            f"sample {first[0]}). They flatter it: figures of them say nothing about new images. "
            "Pass images that it has not seen, or known_images='leave_out'."
        )


def _require_one_label(contents: np.ndarray, is_anomaly: np.ndarray) -> None:
    """Refuse an image that is both normal and an anomaly."""
    normal = {contents[i]: i for i in np.flatnonzero(~is_anomaly)}
    for i in np.flatnonzero(is_anomaly):
        if contents[i] in normal:
            raise ValueError(
                f"samples {normal[contents[i]]} and {i} are copies of one image, one labelled "
                "normal and one an anomaly. Decide which it is, and remove the other."
            )


def _require_both_kinds(is_anomaly: np.ndarray, n_left_out: int) -> None:
    if is_anomaly.any() and not is_anomaly.all():
        return
    lacking = "normal images" if is_anomaly.all() and len(is_anomaly) else "anomalies"
    if not len(is_anomaly):
        lacking = "images"
    left_out = f" ({n_left_out} that the detector knows were left out)" if n_left_out else ""
    raise ValueError(
        f"there are no {lacking} among the {len(is_anomaly)} images{left_out}; pass images of both "
        "kinds that the detector has not seen"
    )
