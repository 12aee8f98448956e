"""Remarks on images that can be read in more than one way: collected while decoding, told once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import AmbiguousImageWarning


@dataclass(frozen=True)
class Named:
    """An image that a remark is about.

    Attributes
    ----------
    position : int
        In the `X` of the user: an image that is read again is the same one.
    name : str
        Its name in messages.
    """

    position: int
    name: str


@dataclass
class _Images:
    """Distinct images, and the first one in `X`, whichever thread reads it when."""

    first: Named
    positions: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.positions)

    def merge(self, other: _Images) -> None:
        self.positions |= other.positions
        if other.first.position < self.first.position:
            self.first = other.first


@dataclass
class _Range:
    """The brightest value of images of one type, and these images as long as all are dim."""

    images: _Images
    brightest: float
    white: float
    limit: float

    @property
    def is_dim(self) -> bool:
        return self.brightest <= self.limit

    def merge(self, other: _Range) -> None:
        self.brightest = max(self.brightest, other.brightest)
        if self.is_dim:
            self.images.merge(other.images)
        else:
            self.images.positions.clear()  # nothing will be told, so that nothing need be kept


@dataclass
class Remarks:
    """Doubts about the images of one call; threads may add to it.

    Parameters
    ----------
    told : set of str
        What was told already, and is not told again.
    """

    told: set[str] = field(default_factory=set)
    _found: dict[str, _Images] = field(default_factory=dict)
    _ranges: dict[str, _Range] = field(default_factory=dict)

    def add(self, text: str, image: Named) -> None:
        """Remark something on an image."""
        self._add(text, _only(image))

    def see_range(
        self, form: str, brightest: float, white: float, limit: float, image: Named
    ) -> None:
        """Note the brightest value of an image whose form has a white, and a limit to be dim."""
        self._see(form, _Range(_only(image), brightest, white, limit))

    def merge(self, other: Remarks) -> None:
        """Add those of another process, on images of the same `X`."""
        for text, images in other._found.items():
            self._add(text, images)
        for form, seen in other._ranges.items():
            self._see(form, seen)

    def warn(self) -> None:
        """Warn of what was not told yet, at the line that called the package."""
        for text, images in list(self._found.items()):
            self._tell(text, _count(images, text))
        for form, seen in list(self._ranges.items()):
            if seen.is_dim and seen.brightest > 0:
                self._tell(form, _describe_range(form, seen))

    def _tell(self, key: str, message: str) -> None:
        if key not in self.told:
            self.told.add(key)
            warn_user(AmbiguousImageWarning(message))

    def _add(self, text: str, new: _Images) -> None:
        with _LOCK:
            self._found.setdefault(text, new).merge(new)

    def _see(self, form: str, new: _Range) -> None:
        with _LOCK:
            self._ranges.setdefault(form, new).merge(new)


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


def _only(image: Named) -> _Images:
    return _Images(image, {image.position})


def _count(images: _Images, text: str) -> str:
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images.first.name}{more}: {text}"


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
        f"the brightest value of {len(seen.images)} image(s) of {form} "
        f"(the first is {seen.images.first.name}) is {brightest}, where white is {white}: they are "
        f"read as nearly black; {advice}"
    )
