"""Pictures of anomaly maps, without matplotlib, which a service need not have."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.map_range import MAP_RANGE
from skanomaly_vit._images.pixels import fitting, shrink

#: The opacity of the map's highest values, as in displays.
_OPACITY = 0.75

#: Pixels of the longer side of a picture: more than a screen shows tell nothing of a map.
_LONGEST = 1024


def draw_map(pixels: Array, anomaly_map: Array) -> bytes:
    """Lay a map (h, w) over its image, as a PNG of at most 1024 pixels a side."""
    image = shrink(pixels, _LONGEST).convert("L")
    values = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    if values.size != image.size:
        values = values.resize(fitting(values.size, _LONGEST), Image.Resampling.BOX)
    low, high = MAP_RANGE
    share = np.clip((np.asarray(values) - low) / (high - low), 0, 1)[..., None]  # [h, w, 1]
    gray = np.asarray(image, dtype=np.float32)[..., None]  # [h, w, 1]
    mixed = gray + _OPACITY * share * (color(share[..., 0]) - gray)  # [h, w, 3]
    stream = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def color(shares: Array) -> Array:
    """Map shares (h, w) in [0, 1] to colors (h, w, 3) from 0 to 255, from yellow to red."""
    red, blue = np.full_like(shares, 255), np.zeros_like(shares)
    return np.stack([red, 255 * (1 - shares), blue], axis=-1)
