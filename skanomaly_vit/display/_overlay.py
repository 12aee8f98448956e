"""Overlays: images and anomaly maps as small pictures in data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from skanomaly_vit._images.pixels import fitting
from skanomaly_vit.display._style import DIMMED, OPACITY, SEQUENTIAL

Array: TypeAlias = np.ndarray[Any, Any]

#: Weights of red, green and blue in perceived brightness (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])

_QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    Parameters
    ----------
    uri : str
        ``data:image/...;base64,...``.
    width, height : int
        Size in pixels.
    """

    uri: str
    width: int
    height: int


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


def encode(image: Image.Image) -> Picture:
    """Encode an image as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(data_uri("jpeg", stream.getvalue()), *image.size)


def overlay(image: Image.Image, values: Array, scale: Scale) -> Image.Image:
    """Lay a map (h, w) over an image of the same size; low values show the image."""
    share = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)[..., None]  # [h, w, 1]
    gray = DIMMED * (np.asarray(image) @ _LUMA)[..., None]  # [h, w, 1]
    mixed = gray + OPACITY * share * (255 * _color(share[..., 0]) - gray)  # [h, w, 3]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def data_uri(kind: str, content: bytes) -> str:
    """Encode a picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def colorbar() -> Picture:
    """Draw the color scale of the maps, from low to high."""
    shares = np.linspace(0, 1, 256)[None]
    return encode(Image.fromarray(np.rint(255 * _color(shares)).astype(np.uint8)).resize((256, 8)))


def _color(shares: Array) -> Array:
    """Map shares (h, w) in [0, 1] to colors (h, w, 3) in [0, 1]."""
    import matplotlib

    return np.asarray(matplotlib.colormaps[SEQUENTIAL](shares))[..., :3]
