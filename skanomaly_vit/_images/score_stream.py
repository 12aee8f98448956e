"""Scores image by image: `iter_scores`, which every detector on images has."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.settings import with_own_settings

#: Batches of a chunk: a device waits for the first one of each.
_BATCHES_AT_ONCE = 16


#: Scores and p-values of a batch; NaN for p-values without calibration images.
Scores: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The score of an image, or the cause why it has none.

    `p_value` is NaN for an unreadable image, and without calibration images.
    """

    index: int
    path: str | None
    score: float
    p_value: float
    cause: str | None


class ScoreStreamMixin(ABC):
    """Scores of any number of images, in constant memory.

    A subclass opens images in `_open_images` and scores the readable ones, batch by batch and in
    order, in `_score_batches`.
    """

    batch_size: int

    @abstractmethod
    def _open_images(self, X: Any, *, on_error: str) -> ImageSource:
        """Check the form of images, and open them."""

    @abstractmethod
    def _score_batches(self, source: ImageSource) -> Iterator[Scores]:
        """Scores of the readable images of a source, a batch as soon as it is done."""

    @with_own_settings
    def iter_scores(
        self, X: Any, *, chunk_size: int | None = None
    ) -> Generator[ImageScore, None, None]:
        """Score images one by one, each as soon as its batch is done.

        Parameters
        ----------
        X : images or iterator of images
            Images of any form that `TransformalyDetector.fit` takes, or an iterator of paths,
            files' bytes, PIL images or arrays, of any length.
        chunk_size : int or None, default=None
            Images that are opened at a time; from an iterator this number is taken before the
            first one is scored. ``None`` is 16 batches.

        Yields
        ------
        image : ImageScore
            In the order of `X`, with the attributes ``index`` (place in `X`), ``path`` (None if the
            image was not given as one), ``score`` (higher = more normal; NaN for an unreadable
            image), ``p_value`` (small = abnormal; NaN for an unreadable image, and without
            calibration images) and ``cause`` (why the image is unreadable; None if it is readable).
            Unreadable images raise and warn of nothing here, whatever `on_error` says.

        Raises
        ------
        ValueError
            If the images are not as described, or `chunk_size` is below 1.

        Notes
        -----
        Memory depends on `chunk_size` alone: of a list, no more than its chunk is decoded.

        Examples
        --------
        >>> from skanomaly_vit import TransformalyDetector
        >>> def print_anomalies(detector: TransformalyDetector, folder: Path) -> None:
        ...     for image in detector.iter_scores(folder.rglob("*.png")):
        ...         if image.cause or image.score < detector.offset_:
        ...             print(image.path, image.cause or image.score)
        """
        size = self.batch_size * _BATCHES_AT_ONCE if chunk_size is None else chunk_size
        if size < 1:
            raise ValueError(f"chunk_size={chunk_size!r} must be at least 1")
        first = 0
        for source in self._open_chunks(X, size):
            for position, score, p_value, cause in _in_order(source, self._score_batches(source)):
                yield ImageScore(first + position, source.path(position), score, p_value, cause)
            first += len(source)

    def _open_chunks(self, X: Any, size: int) -> Iterator[ImageSource]:
        if isinstance(X, Iterator):
            while chunk := list(itertools.islice(X, size)):
                yield self._open_images(chunk, on_error="nan")
            return
        whole = self._open_images(X, on_error="nan")
        for start in range(0, len(whole), size):
            chosen = np.arange(start, min(start + size, len(whole)))
            yield whole.take(chosen)


def _in_order(
    source: ImageSource, batches: Iterator[Scores]
) -> Iterator[tuple[int, float, float, str | None]]:
    """Position, score, p-value and cause of each image, the unreadable ones in their places."""
    n_seen = n_scored = 0
    # Behind the last image that has a score, there may be more that cannot be read.
    for scores, p_values in itertools.chain(batches, [(np.empty(0), np.empty(0))]):
        places = source.readable()[n_scored : n_scored + len(scores)].tolist()
        rows = zip(scores.tolist(), p_values.tolist(), strict=True)
        found = dict(zip(places, rows, strict=True))
        stop = places[-1] + 1 if places else len(source)
        for position in range(n_seen, stop):
            if position in found:
                yield position, *found[position], None
            else:
                yield position, math.nan, math.nan, source.unreadable[position].cause
        n_seen, n_scored = stop, n_scored + len(scores)
