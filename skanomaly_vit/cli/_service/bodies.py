"""Bytes that should be an image: looked at, decoded, and refused in one clear sentence."""

from __future__ import annotations

import re

from skanomaly_vit._images.decoding import Array, decode_image
from skanomaly_vit._images.pillow_rules import open_file
from skanomaly_vit._images.remarks import remarks_to
from skanomaly_vit._images.unreadable import one_line


class NotAnImageError(ValueError):
    """No image, half of one, or one that is not taken here; the message is one sentence."""


def count_pixels(content: bytes, max_pixels: int | None) -> int:
    """Read the header of an image, and return its number of pixels.

    Raises
    ------
    NotAnImageError
        If there is none, or it announces more pixels than the limit.
    """
    try:
        with open_file(content, max_pixels) as image:
            return image.width * image.height
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError...
        raise NotAnImageError(_cause(error)) from error


def decode(content: bytes, max_pixels: int | None) -> tuple[Array, list[str]]:
    """Decode the pixels (h, w, 3) of an image; return them with what is doubtful about them.

    Raises
    ------
    NotAnImageError
        As `count_pixels` does, and if the pixels are not all there.
    """
    texts: list[str] = []
    try:
        with remarks_to(texts):
            return decode_image(content, max_pixels), texts
    except MemoryError:
        raise
    except Exception as error:
        raise NotAnImageError(_cause(error)) from error


def _cause(error: Exception) -> str:
    """Cause for whoever sent the image, who cannot set parameters here."""
    said = one_line(error).partition("; raise max_pixels")[0]
    return re.sub(r"more than max_pixels=(\d+)", r"more than the \1 that are taken here", said)
