"""Every warning and error of the package that users meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CacheWarning",
    "CalibrationWarning",
    "CheckpointWarning",
    "ConfusionWarning",
    "LabelWarning",
    "ModelFileError",
    "OutOfMemoryWarning",
    "UnreadableImage",
    "UnreadableImageError",
    "UnreadableImageWarning",
    "WeightsUnavailableError",
]


class CalibrationWarning(UserWarning):
    """There are too few calibration scores for what was asked."""


class WeightsUnavailableError(OSError):
    """Pre-trained weights cannot be had on this machine.

    Raised within seconds by `fit` when a backbone is named, its weights are neither
    cached nor downloadable, and nothing else was asked for. The message names the ways
    out; no other weights are ever used in their place.
    """


class OutOfMemoryWarning(UserWarning):
    """A device ran out of memory; batches are worked on in smaller parts from here on.

    Issued while fitting or scoring. Results stay the same up to rounding.
    """


class CacheWarning(UserWarning):
    """A cache cannot be used as it should; results are computed instead.

    Issued where an entry is damaged (it is dropped, and made again) and where the cache's file
    cannot be read or written (it is not used any more). No result is affected.
    """


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read.

    Parameters
    ----------
    index : int
        Its place in the `X` that was passed.
    path : str or None
        None if it was not given as a path.
    cause : str
        What is wrong with it, on one line.
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


class UnreadableImageWarning(UserWarning):
    """Images that could not be read, and have NaN in place of a score (``on_error="nan"``).

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
    """Raised for images that cannot be read, as opposed to an `X` that is none.

    Parameters
    ----------
    message : str
        Names the images, and says what to do.
    images : sequence of UnreadableImage, default=()
        Which images cannot be read, and why.
    """

    # The default is what lets joblib bring the error out of another process.
    def __init__(self, message: str, images: Sequence[UnreadableImage] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


class LabelWarning(UserWarning):
    """Labels given to `fit` that show that it may be learning from anomalies."""


class CheckpointWarning(UserWarning):
    """A checkpoint is not used, or cannot be written.

    Issued by `fit` where the only checkpoints are of other images or parameters, where one is
    damaged, and where one cannot be written. No result is affected.
    """


class ConfusionWarning(UserWarning):
    """A class lies so close to another one that it would be missed as an anomaly."""


class ModelFileError(ValueError):
    """A file that is no model, or not a whole one.

    Raised where a model is loaded: the file is missing, cut off, damaged, of another kind, of a
    newer format, or holds what no detector has. The message names the file and the cause.
    """

    cause = ""
