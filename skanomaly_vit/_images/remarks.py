"""Remarks on images that can be read in more than one way: collected while decoding, told once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from skanomaly_vit._images.unreadable import depth_of_caller
from skanomaly_vit.exceptions import AmbiguousImageWarning


@dataclass(frozen=True)
class _Remark:
    n_images: int
    first: str


@dataclass(frozen=True)
class _Range:
    """The brightest value of images of one type."""

    n_images: int
    brightest: float
    white: float
    limit: float
    first: str


@dataclass
class Remarks:
    """Doubts about the images of one call; threads may add to it.

    Parameters
    ----------
    told : set of str
        What was told already, and is not told again.
    """

    told: set[str] = field(default_factory=set)
    _found: dict[str, _Remark] = field(default_factory=dict)
    _ranges: dict[str, _Range] = field(default_factory=dict)

    def add(self, text: str, name: str) -> None:
        """Remark something on the image that messages call `name`."""
        self._add(text, _Remark(1, name))

    def see_range(self, form: str, brightest: float, white: float, limit: float, name: str) -> None:
        """Note the brightest value of an image whose form has a white, and a limit to be dim."""
        self._see(form, _Range(1, brightest, white, limit, name))

    def merge(self, other: Remarks) -> None:
        """Add those of another process, on images of the same `X`."""
        for text, remark in other._found.items():
            self._add(text, remark)
        for form, seen in other._ranges.items():
            self._see(form, seen)

    def warn(self) -> None:
        """Warn of what was not told yet, at the line that called the package."""
        for text, remark in list(self._found.items()):
            self._tell(text, _count(remark.n_images, remark.first, text))
        for form, seen in list(self._ranges.items()):
            if 0 < seen.brightest <= seen.limit:
                self._tell(form, _describe_range(form, seen))

    def _tell(self, key: str, message: str) -> None:
        if key not in self.told:
            self.told.add(key)
            warnings.warn(AmbiguousImageWarning(message), stacklevel=depth_of_caller())

    def _add(self, text: str, new: _Remark) -> None:
        with _LOCK:
            old = self._found.get(text)
            n_images = new.n_images + (old.n_images if old else 0)
            self._found[text] = replace(old or new, n_images=n_images)

    def _see(self, form: str, new: _Range) -> None:
        with _LOCK:
            old = self._ranges.get(form, replace(new, n_images=0))
            self._ranges[form] = replace(
                old,
                n_images=old.n_images + new.n_images,
                brightest=max(old.brightest, new.brightest),
            )


_LOCK = threading.Lock()

_HERE = threading.local()


@contextmanager
def remarks_to(texts: list[str]) -> Iterator[None]:
    """Collect into a list what `remark` is told in this thread."""
    before = getattr(_HERE, "texts", None)
    _HERE.texts = texts
    try:
        yield
    finally:
        _HERE.texts = before


def remark(text: str) -> None:
    """Say what is doubtful about the image that is being decoded; nobody may listen."""
    texts = getattr(_HERE, "texts", None)
    if texts is not None:
        texts.append(text)


def _count(n_images: int, first: str, text: str) -> str:
    more = f" and {n_images - 1} more" if n_images > 1 else ""
    return f"{first}{more}: {text}"


def _describe_range(form: str, seen: _Range) -> str:
    brightest, white = f"{seen.brightest:.3g}", "1"
    advice = "if they were divided twice, pass them as they were before"
    if seen.white > 1:
        brightest, white = f"{seen.brightest:.0f}", f"{seen.white:.0f}"
        fewest_bits = 8 if seen.white > 255 else 1
        likely = 2 ** max(int(seen.brightest).bit_length(), fewest_bits) - 1
        advice = (
            f"if white is another value, such as {likely}, divide by it and pass floats: "
            f"pixels.astype(np.float32) / {likely}"
        )
    return (
        f"the brightest value of {seen.n_images} image(s) of {form} (the first is {seen.first}) "
        f"is {brightest}, where white is {white}: they are read as nearly black; {advice}"
    )
