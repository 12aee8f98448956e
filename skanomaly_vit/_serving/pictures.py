"""Pictures of anomaly maps, without matplotlib, which a service need not have."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.pixels import fitting, shrink

#: The color scale of the displays, "inferno" of matplotlib (CC0), at 17 equal steps.
_INFERNO = np.array(
    [
        [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110],
        [138, 34, 106], [163, 44, 97], [188, 55, 84], [210, 70, 68], [228, 90, 49], [241, 115, 29],
        [249, 142, 9], [252, 172, 17], [249, 203, 53], [242, 234, 105], [252, 255, 164],
    ],
    dtype=np.float32,
)  # fmt: skip

#: The gray of the image below the map, and the opacity of the map's highest values, as in displays.
_DIMMED, _OPACITY = 0.6, 0.85

#: Pixels of the longer side of a picture: more than a screen shows tell nothing of a map.
_LONGEST = 1024


def draw_map(pixels: Array, anomaly_map: Array, top: float) -> bytes:
    """Lay a map (h, w) over its image, as a PNG of at most 1024 pixels a side.

    The value `top`, in standard deviations of normal patches, gets the brightest color.
    """
    image = shrink(pixels, _LONGEST).convert("L")
    values = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    if values.size != image.size:
        values = values.resize(fitting(values.size, _LONGEST), Image.Resampling.BOX)
    share = np.clip(np.asarray(values) / top, 0, 1)[..., None]  # [h, w, 1]
    gray = _DIMMED * np.asarray(image, dtype=np.float32)[..., None]  # [h, w, 1]
    mixed = gray + _OPACITY * share * (color(share[..., 0]) - gray)  # [h, w, 3]
    stream = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def color(shares: Array) -> Array:
    """Map shares (h, w) in [0, 1] to colors (h, w, 3) from 0 to 255."""
    steps = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(shares, steps, _INFERNO[:, c]) for c in range(3)], axis=-1)
