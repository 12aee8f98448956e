"""Labelled images of an evaluation: checked, and without those that a detector knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skanomaly_vit._images.opening import open_images, reading_options
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
    seen = _look_into(detectors, X)
    _require_one_label(seen, is_anomaly)
    if known_images == "raise":
        _require_new(seen)
    contents, kept = seen.contents, np.flatnonzero(~(seen.is_learned | seen.is_calibrating))
    _require_both_kinds(is_anomaly[kept], len(X) - len(kept))
    n_copies = len(kept) - len(np.unique(contents[kept]))
    return Labelled(X, kept, is_anomaly[kept], as_objects(labels)[kept], n_copies, seen.is_checked)


def _kinds_of(y: Any, anomaly_label: Any) -> list[Any]:
    """Labels as kinds of defects; a sign is no kind."""
    labels = as_labels(y)
    return ["anomaly"] * len(labels) if is_auto(anomaly_label) else labels


@dataclass(frozen=True)
class _Seen:
    """Contents of images, and which of them a detector has learned from, or is calibrated by."""

    contents: np.ndarray
    is_learned: np.ndarray
    is_calibrating: np.ndarray
    is_checked: bool
    name: Callable[[int], str]


def _look_into(detectors: Sequence[Any], X: Any) -> _Seen:
    nothing = np.zeros(len(X), dtype=bool)
    try:
        source = open_images(X, **reading_options(detectors[0]))
        units = find_units(source)
    except UnreadableImageError:
        raise
    except (TypeError, ValueError):  # samples of another kind: features, tables
        return _Seen(np.arange(float(len(X))), nothing, nothing, False, "sample {}".format)
    summaries = [getattr(detector, "_fit_summary", None) for detector in detectors]
    # Files of older formats have no summary, or no units in it.
    held = [each for each in summaries if each is not None and len(each.learned_units)]
    learned, calibrating = (
        np.any([nothing, *(units.any_in(getattr(each, name)) for each in held)], axis=0)
        for name in ("learned_units", "held_out_units")
    )
    is_checked = len(held) == len(detectors)
    return _Seen(units.contents, learned, calibrating & ~learned, is_checked, source.name)


def _require_new(seen: _Seen) -> None:
    """Refuse images that a detector knows."""
    known = np.flatnonzero(seen.is_learned | seen.is_calibrating)
    if len(known):
        raise ValueError(
            f"the detector has learned from {seen.is_learned.sum()} of {len(seen.contents)} "
            f"images, and {seen.is_calibrating.sum()} others set its threshold (the first one is "
            f"{seen.name(int(known[0]))}). They flatter it: figures of them say nothing about new "
            "images. Pass images that it has not seen, or known_images='leave_out'."
        )


def _require_one_label(seen: _Seen, is_anomaly: np.ndarray) -> None:
    """Refuse an image that is both normal and an anomaly."""
    normal = {seen.contents[i]: int(i) for i in np.flatnonzero(~is_anomaly)}
    for i in np.flatnonzero(is_anomaly):
        if seen.contents[i] in normal:
            first, second = seen.name(normal[seen.contents[i]]), seen.name(int(i))
            raise ValueError(
                f"{first} and {second} are copies of one image, one labelled normal and one an "
                "anomaly. Decide which it is, and remove the other."
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
