"""Fixture images: three small files that code draws, for checks that decode and resize them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pixels import as_uint8
from skanomaly_vit._images.preprocessing import covering
from skanomaly_vit._images.regions import Framing, MaskedImages
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.stages import Stage, largest

DECODING, RESIZING = "decoding", "resizing"

#: Seed of the drawings.
_SEED = 22

#: Numbers of an image that a sample holds, at most: of its pixels, and of an input made of it.
_N_PIXELS, _N_INPUTS = 96, 96


def draw_files() -> list[bytes]:
    """A JPEG in colour, and two PNG files: a grey one, and a large one of few colours.

    The first two are smaller than the input of a usual backbone, and the third is larger, so that
    resizing goes both ways.
    """
    rng = np.random.default_rng(_SEED)
    coloured, grey = _waves((60, 80), rng), _waves((32, 24), rng)[..., 0]
    return [
        _encoded(Image.fromarray(coloured), "JPEG", quality=75),
        _encoded(Image.fromarray(grey), "PNG", optimize=True),
        _encoded(Image.fromarray(_blocks((480, 640), rng)), "PNG", optimize=True),
    ]


def open_files(files: list[bytes], framing: Framing) -> ImageSource:
    """The files, framed as images of a detector are, but for two things.

    The region of interest is fitted to each file: a pixel of the file counts if it covers one that
    counts. Tiles are left out, since to cut is the same everywhere.
    """
    padding = Framing(keep_aspect=framing.keep_aspect)
    if framing.roi is None:
        return open_images(files, framing=padding)
    source = open_images(files)
    regions = [covering(framing.roi, source.size(position)) for position in range(len(source))]
    return open_images(MaskedImages(files, regions), framing=padding)


def sampled(values: Array, n: int) -> Array:
    """At most `n` values of an array, at equal distances in its memory: (n,)."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(n, flat.size)).astype(np.intp)]


def as_text(content: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(content).decode("ascii")


def from_text(text: str) -> bytes:
    """The inverse of `as_text`; a ValueError if it is none."""
    return base64.b64decode(text, validate=True)


def digests_of(images: Sequence[Array]) -> list[str]:
    """SHA-256 of the pixels of decoded images, with type and shape, as hexadecimal digits."""
    return [_digest(pixels) for pixels in images]


def sample_pixels(images: Sequence[Array]) -> Array:
    """Some values of decoded images, side by side: (n,) float32, in levels of 255."""
    samples = [sampled(as_uint8(pixels), _N_PIXELS) for pixels in images]
    return np.concatenate(samples).astype(np.float32)


def sample_inputs(inputs: Array, std: Sequence[float]) -> Array:
    """Some values of normalized inputs (n_images, 3 or 4, h, w), in shares of white: float32.

    A fourth channel, of the pixels that count, is taken as it is.
    """
    scale = np.ones((inputs.shape[1], 1, 1), np.float32)
    scale[:3, 0, 0] = std
    return np.stack([sampled(image * scale, _N_INPUTS) for image in inputs])


def compare_decoding(now: tuple[list[str], Array], then: tuple[list[str], Array]) -> Stage:
    """The stage of decoding, from digests and samples of pixels."""
    difference = largest(now[1], then[1])
    return Stage(
        DECODING, difference, "levels of 255", 0.0, then[1].size, has_other_bits=now[0] != then[0]
    )


def compare_resizing(now: Array, then: Array, rounding: float) -> Stage:
    """The stage of resizing, from samples of inputs."""
    return Stage(RESIZING, largest(now, then), "of white", rounding, then.size)


def _digest(pixels: Array) -> str:
    digest = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _waves(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Smooth waves in three colours around grey."""
    y, x = (np.arange(side) / side for side in size)
    image = np.full((*size, 3), 128.0)
    for _ in range(5):
        down, along = rng.uniform(-4, 4, 2)
        wave = np.sin(2 * np.pi * (down * y[:, np.newaxis] + along * x + rng.uniform()))
        image += wave[..., np.newaxis] * rng.uniform(-18, 18, 3)
    return image.clip(0, 255).astype(np.uint8)


def _blocks(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Rectangles of one colour each, whose edges lie on pixels of any number."""
    image = np.full((*size, 3), 128, np.uint8)
    for _ in range(14):
        top, left = (rng.integers(0, side - 8) for side in size)
        height, width = rng.integers(3, 160, 2)
        image[top : top + height, left : left + width] = rng.integers(64, 192, 3)
    return image


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
