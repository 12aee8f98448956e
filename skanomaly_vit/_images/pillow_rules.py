"""Opening image files with Pillow, under our own limit and without its warnings."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from skanomaly_vit._images.jpeg_file import require_all_data
from skanomaly_vit._images.png_file import check_png
from skanomaly_vit._images.raw_files import check_bmp, check_ppm
from skanomaly_vit._utils.shared_context import SharedContext

#: Default limit of pixels: more than nearly all cameras have. Decoding such an image takes some
#: 3 GB of memory.
MAX_PIXELS = 2**27


#: How files of PNG, JPEG and BMP begin.
_PLAIN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")


@contextmanager
def open_file(file: str | bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open an image file, read its header, and close it; raise for a larger one, its pixels unread.

    `file` is a path, or the bytes of a file.
    """
    # Opening a named pipe would wait for a writer.
    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    with own_rules(max_pixels, in_parts=not _is_plain(file)):
        with _opened(file, max_pixels) as image:
            _require_readable(image)
            if image.format != "JPEG":
                _check_data(file, image)
                yield image
                return
        complete = require_all_data(file if isinstance(file, bytes) else Path(file).read_bytes())
        with _opened(complete, max_pixels) as image:
            yield image


def _require_readable(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("PostScript is a program, not an image; convert the file to PNG")
    if image.format == "ICO" and ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(  # it was decoded as it was opened
            "Pillow does not tell half an ICO file from a whole one while "
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set; set it to False, or convert the file"
        )


def _check_data(file: str | bytes, image: Image.Image) -> None:
    """Raise if header and data of a file disagree, where Pillow would not see it."""
    if image.format not in ("PNG", "PPM", "BMP"):
        return
    with _stream(file) as stream:
        if image.format == "PNG":
            check_png(stream)
        elif image.format == "PPM":
            check_ppm(stream, image)
        else:
            check_bmp(stream)


def _stream(file: str | bytes) -> IO[bytes]:
    return open(file, "rb") if isinstance(file, str) else io.BytesIO(file)


def _is_plain(file: str | bytes) -> bool:
    """Whether Pillow looks at the size of a file, but not of its parts."""
    if isinstance(file, bytes):
        return file.startswith(_PLAIN)
    with open(file, "rb") as stream:
        return stream.read(8).startswith(_PLAIN)


@contextmanager
def _opened(file: str | bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    if not file:
        raise ValueError("no bytes: the image is missing")
    with (
        _stream(file) as stream,
        _identified(file, stream) as image,
    ):
        check_pixels(image.size, max_pixels)
        # A tile of a TIFF may be larger than the image.
        check_pixels(getattr(image, "_tile_size", image.size), max_pixels)
        yield image


def _identified(file: str | bytes, stream: IO[bytes]) -> Image.Image:
    """`Image.open` without its check of sizes, which is by a limit of the whole process."""
    name = file if isinstance(file, str) else ""
    prefix = stream.read(16)
    tried: set[str] = set()
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for kind in [kind for kind in Image.ID if kind not in tried]:
            tried.add(kind)
            factory, accept = Image.OPEN[kind]
            try:
                accepted = accept is None or accept(prefix)
                if accepted and not isinstance(accepted, str):
                    stream.seek(0)
                    return factory(stream, name)
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # as Pillow does
    if isinstance(file, str):
        raise UnidentifiedImageError(f"cannot identify image file {file!r}")
    # Pillow's message holds an address in memory, which differs from run to run.
    raise ValueError(f"{len(file)} bytes that are no image of a known format")


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


class _OwnRules:
    """Has Pillow decode by our rules in a thread, whatever the application has set.

    Pillow warns above ``Image.MAX_IMAGE_PIXELS`` and raises above twice that, also for parts of
    files that `check_pixels` does not see, such as frames. Its globals are changed where they
    stand in the way alone: where the application has a limit below ours and the file has parts.
    Threads share one change, since globals know of no threads.
    """

    def __init__(self) -> None:
        self._quiet = SharedContext(_quiet)
        self._limits = _PartLimits()

    @contextmanager
    def __call__(self, max_pixels: int | None, *, in_parts: bool) -> Iterator[None]:
        depth = getattr(_here, "depth", 0)
        _here.depth = depth + 1
        try:
            limits = self._limits(max_pixels) if in_parts else nullcontext()
            with self._quiet(), limits:
                yield
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"image, or a part of it, of more pixels than max_pixels={max_pixels} allows; "
                "raise max_pixels if the file can be trusted"
            ) from error
        finally:
            _here.depth = depth


class _PartLimits:
    """Raises ``Image.MAX_IMAGE_PIXELS`` as far as the limits of all threads at once need it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pillows: int | None = None
        self._needed: list[int | None] = []

    @contextmanager
    def __call__(self, max_pixels: int | None) -> Iterator[None]:
        # Pillow raises above twice its limit.
        needed = None if max_pixels is None else (max_pixels + 1) // 2
        with self._lock:
            if not self._needed:
                self._pillows = Image.MAX_IMAGE_PIXELS
            self._needed.append(needed)
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._needed.remove(needed)
                self._apply()

    def _apply(self) -> None:
        limits = [limit for limit in (self._pillows, *self._needed) if limit is not None]
        widest = max(limits) if len(limits) == 1 + len(self._needed) else None
        if widest != Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = widest


#: How many images this thread is decoding, one within the other.
_here = threading.local()


class _DecodingHere:
    """Matches the modules of Pillow, in a filter of warnings, while this thread decodes."""

    def match(self, module: str) -> bool:
        return getattr(_here, "depth", 0) > 0 and module.startswith("PIL.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings of Pillow, which reads an image or raises, in threads that decode.

    Not by `warnings.catch_warnings`, which is of all threads and has Python forget which warnings
    it has shown.
    """
    ours: Any = ("ignore", None, Warning, _DecodingHere(), 0)
    filters: Any = warnings.filters
    filters.insert(0, ours)
    try:
        yield
    finally:
        filters.remove(ours)


own_rules = _OwnRules()
