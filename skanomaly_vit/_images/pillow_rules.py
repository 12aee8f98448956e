"""Opening image files with Pillow, under our own limit and without its warnings."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from skanomaly_vit._utils.shared_context import SharedContext

#: Default limit of pixels: more than nearly all cameras have. Decoding such an image takes some
#: 3 GB of memory.
MAX_PIXELS = 2**27


@contextmanager
def open_file(file: str | bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open an image file, read its header, and close it; raise for a larger one, its pixels unread.

    `file` is a path, or the bytes of a file.
    """
    # Opening a named pipe would wait for a writer.
    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    with own_limits(max_pixels):
        with _open(file) as image:
            if image.format == "EPS":
                raise ValueError("PostScript is a program, not an image; convert the file to PNG")
            check_pixels(image.size, max_pixels)
            if image.format != "PNG":
                yield image
                return
            # Pillow ignores the checksums of pixels while it decodes, and a fifth of all flipped
            # bits would pass. `verify` checks them, once, and closes the image.
            image.verify()
        with _open(file) as image:
            check_pixels(image.size, max_pixels)
            yield image


def _open(file: str | bytes) -> Image.Image:
    if isinstance(file, str):
        return Image.open(file)
    if not file:
        raise ValueError("no bytes: the image is missing")
    try:
        return Image.open(io.BytesIO(file))
    except UnidentifiedImageError:
        # Pillow's message holds an address in memory, which differs from run to run.
        raise ValueError(f"{len(file)} bytes that are no image of a known format") from None


def check_pixels(size: tuple[int, int], max_pixels: int | None) -> None:
    """Raise if an image (width, height) has no pixels, or more than the limit."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"image of zero size, {width} x {height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ValueError(
            f"image of {width} x {height} = {width * height} pixels, more than "
            f"max_pixels={max_pixels}; raise max_pixels if the file can be trusted"
        )


class _OwnLimits:
    """Replaces Pillow's global limit and rules by ours while a thread decodes.

    Pillow warns above ``Image.MAX_IMAGE_PIXELS`` and raises above twice that, also for parts of
    files that `check_pixels` does not see, such as the tiles of a TIFF. Threads share one context,
    since neither that global nor `warnings.catch_warnings` knows of threads.
    """

    def __init__(self) -> None:
        self._rules = SharedContext(_own_rules)
        self._lock = threading.Lock()
        self._limits: list[int | None] = []

    @contextmanager
    def __call__(self, max_pixels: int | None) -> Iterator[None]:
        try:
            with self._rules(), self._widened(max_pixels):
                yield
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"image, or a part of it, of more than twice max_pixels={max_pixels}; raise "
                "max_pixels if the file can be trusted"
            ) from error

    @contextmanager
    def _widened(self, limit: int | None) -> Iterator[None]:
        """Set the widest of several limits at once; each thread also checks its own."""
        with self._lock:
            self._limits.append(limit)
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(limit)
                self._apply()

    def _apply(self) -> None:
        if self._limits:
            given = [limit for limit in self._limits if limit is not None]
            Image.MAX_IMAGE_PIXELS = max(given) if len(given) == len(self._limits) else None


@contextmanager
def _own_rules() -> Iterator[None]:
    pillows = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    # Other packages set it to True, and half an image would get a score.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        # Pillow reads an image or raises. Of an odd but sound file there is nothing to say.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = pillows


own_limits = _OwnLimits()
