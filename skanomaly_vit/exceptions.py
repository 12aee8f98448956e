"""Warnings and errors of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AmbiguousImageWarning",
    "CacheWarning",
    "CalibrationWarning",
    "CheckpointWarning",
    "ConfusionWarning",
    "LabelWarning",
    "ModelFileError",
    "OutOfMemoryWarning",
    "PrecisionWarning",
    "ThresholdWarning",
    "UnreadableImage",
    "UnreadableImageError",
    "UnreadableImageWarning",
    "WeightsUnavailableError",
    "WorkerWarning",
]


class ThresholdWarning(UserWarning):
    """`contamination` was changed after the threshold was set; the old threshold is in use.

    Issued once by `predict`.
    """


class CalibrationWarning(UserWarning):
    """Scores or a threshold that are worth less than they seem.

    Too few calibration scores for the requested rate or test; held-out images that have near copies
    among those that the detector has learned from, and score too high; too few images to learn
    from; or an update whose errors of seen and of unseen images cannot be told apart.
    """


class WeightsUnavailableError(OSError):
    """Pre-trained weights cannot be had on this machine.

    `fit` raises it within seconds if `backbone` names a network whose weights are neither cached
    nor downloadable. The message names the ways out; `fit` never uses other weights instead.
    """


class OutOfMemoryWarning(UserWarning):
    """A device ran out of memory; from now on it gets batches in smaller parts.

    Fitting and scoring issue it. Results stay the same up to rounding. Fitting also issues it if
    the folder for temporary files has no room for tokens, which changes no result.
    """


class PrecisionWarning(UserWarning):
    """A backbone works in bfloat16 on a machine without instructions for it, and is slow.

    Fitting and scoring issue it once for a loaded backbone. No result changes.
    """


class CacheWarning(UserWarning):
    """A cache is damaged or out of order; the estimator computes the results instead.

    `DiskCache` issues it if an entry is damaged (it drops the entry, which is made again), or if
    it cannot read or write its file (which it does not use any more). No result changes.
    """


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read.

    Parameters
    ----------
    index : int
        Its index in `X`.
    path : str or None
        None if `X` holds no path there.
    cause : str
        The cause, on one line.
    """

    index: int
    path: str | None
    cause: str

    def __str__(self) -> str:
        where = f"sample {self.index}"
        return (
            f"{where}: {self.cause}"
            if self.path is None
            else f"{where} ({self.path!r}): {self.cause}"
        )


class AmbiguousImageWarning(UserWarning):
    """Images that can be read in more than one way; the message says how they were read.

    Fitting and scoring issue it once a call for each kind of doubt: values that use a small part of
    the range of their type, several pages in a file, CMYK without a colour profile, a profile that
    cannot be applied.
    """


class UnreadableImageWarning(UserWarning):
    """Unreadable images, which score NaN (``on_error="nan"``).

    Parameters
    ----------
    message : str
        Lists the images, up to 50 of them.
    images : sequence of UnreadableImage, default=()
        All of them, each with ``index``, ``path`` and ``cause``.

    Examples
    --------
    >>> import warnings
    >>> from skanomaly_vit.exceptions import UnreadableImageWarning
    >>> def score():
    ...     warnings.warn(UnreadableImageWarning("1 of 9 images cannot be read"), stacklevel=2)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     score()
    >>> caught[0].message.images
    []
    """

    def __init__(self, message: str, images: Sequence[UnreadableImage] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


class UnreadableImageError(ValueError):
    """Unreadable images in an `X` of an accepted form.

    Parameters
    ----------
    message : str
        Names the images, and the remedy.
    images : sequence of UnreadableImage, default=()
        The unreadable images, each with its cause.
    """

    # With the default, joblib can bring the error out of another process.
    def __init__(self, message: str, images: Sequence[UnreadableImage] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


class LabelWarning(UserWarning):
    """Labels passed to `fit` show that it may learn from anomalies."""


class CheckpointWarning(UserWarning):
    """A checkpoint is not used, or cannot be written.

    `fit` issues it if all checkpoints are of other images or parameters, if one is damaged, or if
    it cannot write one. No result changes.
    """


class ConfusionWarning(UserWarning):
    """A class lies too close to another one to be found as an anomaly."""


class ModelFileError(ValueError):
    """A file that is no model, or not a whole one.

    Loading a model raises it: the file is missing, cut off, damaged, of another kind, of a newer
    format, or not of a detector. The message names the file and the cause.
    """

    cause = ""


class WorkerWarning(UserWarning):
    """A worker of joblib's backend was lost; its shards are computed again.

    Fitting and scoring issue it. No result changes.
    """
