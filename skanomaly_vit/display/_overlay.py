"""Overlays: images and anomaly maps as small pictures in data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from skanomaly_vit._images.pixels import fitting
from skanomaly_vit.display._style import OPACITY, SEQUENTIAL

Array: TypeAlias = np.ndarray[Any, Any]

#: Weights of red, green and blue in perceived brightness (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])

_QUALITY = 82  # of JPEG

_STEPS = 64  # colors of an encoded map


@dataclass(frozen=True)
class Picture:
    """A picture that a page shows.

    Parameters
    ----------
    uri : str
        ``data:image/...;base64,...``, or a path relative to the page.
    width, height : int
        Size in pixels.
    digest : str
        Of its content.
    """

    uri: str
    width: int
    height: int
    digest: str


@dataclass(frozen=True)
class Encoded:
    """A picture as the content of a file.

    Parameters
    ----------
    kind : str
        ``"jpeg"`` or ``"png"``.
    content : bytes
    width, height : int
        Size in pixels.
    """

    kind: str
    content: bytes
    width: int
    height: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]

    def embed(self) -> Picture:
        """The picture in a data URI."""
        text = base64.b64encode(self.content).decode("ascii")
        return self.at(f"data:image/{self.kind};base64,{text}")

    def at(self, uri: str) -> Picture:
        """The picture under a URI."""
        return Picture(uri, self.width, self.height, self.digest)


@dataclass(frozen=True)
class Scale:
    """Range of map values of the color scale; values beyond it get the color of its end."""

    low: float
    high: float

    @classmethod
    def of(cls, maps: Sequence[Array]) -> Scale:
        """Range from 0 to the 99 % quantile, so that one bright spot does not dim the others.

        If the quantile is not above 0, the range is that of all values, and one unit for constant
        maps.
        """
        values = np.concatenate([each.ravel() for each in maps])
        low, high = 0.0, float(np.quantile(values, 0.99))
        if high <= low:
            low, high = float(values.min()), float(values.max())
        return cls(low, high if high > low else low + 1.0)


def shrink_map(values: Array, longest: int) -> Array:
    """Shrink a map (h, w) to at most `longest` pixels a side, by means."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(fitting(image.size, longest), Image.Resampling.BOX))


def encode(image: Image.Image) -> Encoded:
    """Encode an image as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Encoded("jpeg", stream.getvalue(), *image.size)


def encode_map(values: Array, scale: Scale) -> Encoded:
    """Encode a map (h, w) as a PNG to lay over its image: low values are transparent."""
    share = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)  # [h, w]
    steps = np.linspace(0, 1, _STEPS)
    image = Image.fromarray(np.rint(share * (_STEPS - 1)).astype(np.uint8))
    image.putpalette(np.rint(255 * _color(steps[None])).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(
        stream, "PNG", optimize=True, transparency=np.rint(255 * steps).astype(np.uint8).tobytes()
    )
    return Encoded("png", stream.getvalue(), *image.size)


def overlay(image: Image.Image, values: Array, scale: Scale) -> Image.Image:
    """Lay a map (h, w) over an image of the same size; low values show the image."""
    share = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)[..., None]  # [h, w, 1]
    gray = (np.asarray(image) @ _LUMA)[..., None]  # [h, w, 1]
    mixed = gray + OPACITY * share * (255 * _color(share[..., 0]) - gray)  # [h, w, 3]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def colorbar() -> Encoded:
    """Draw the color scale of the maps, from low to high."""
    shares = np.linspace(0, 1, 256)[None]
    return encode(Image.fromarray(np.rint(255 * _color(shares)).astype(np.uint8)).resize((256, 8)))


def _color(shares: Array) -> Array:
    """Map shares (h, w) in [0, 1] to colors (h, w, 3) in [0, 1]."""
    import matplotlib

    return np.asarray(matplotlib.colormaps[SEQUENTIAL](shares))[..., :3]
