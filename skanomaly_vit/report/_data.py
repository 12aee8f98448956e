"""Data of a page: what its script reads, as JSON that HTML leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from skanomaly_vit.display._overlay import Picture
from skanomaly_vit.report._calibration import CONFIDENCE, Calibration
from skanomaly_vit.report._histogram import Axis
from skanomaly_vit.report._page import ImageRow, Page

_RATE_DIGITS = 7


def encode_data(page: Page, digits: int) -> str:
    """Encode a page's data as JSON in ASCII, without characters that HTML reads."""
    text = json.dumps(_collect(page, digits), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _collect(page: Page, digits: int) -> dict[str, Any]:
    return {
        "id": _identify(page.rows),
        "root": page.root,
        "digits": digits,
        "threshold": page.offset,
        "axis": _axis(page.histogram.axis),
        "labels": [{"name": k.label, "isAnomaly": k.is_anomaly} for k in page.kinds],
        "calibration": _calibration(page.calibration),
        "images": [_image(row) for row in page.rows],
    }


def _identify(rows: list[ImageRow]) -> str:
    """Name of the images of a page, under which a browser keeps their marks."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.path):
        text = f"{row.path}\0{row.copies.thumbnail.digest}\0"
        digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()[:24]


def _axis(axis: Axis) -> dict[str, float]:
    return {"center": axis.center, "width": axis.width, "low": axis.low, "high": axis.high}


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    limits, bounds = calibration.limits, calibration.bounds
    return {
        "scores": calibration.scores.tolist(),
        "rates": calibration.rates.round(_RATE_DIGITS).tolist(),
        "units": calibration.n_units,
        "byGroup": calibration.groups is not None,
        "limits": None if limits is None else limits.tolist(),
        "bounds": None if bounds is None else bounds.round(_RATE_DIGITS).tolist(),
        "confidence": CONFIDENCE,
    }


def _image(row: ImageRow) -> dict[str, Any]:
    found = {
        "path": row.path,
        "folder": os.path.dirname(row.path),
        "score": row.score,
        "thumbnail": _picture(row.copies.thumbnail),
    }
    if row.name != row.path:
        found["name"] = row.name
    if row.p_value is not None:
        found["p"] = row.p_value
    if row.label:
        found["label"] = row.label
    if row.copies.large is not None:
        found["large"] = _picture(row.copies.large)
    return found


def _picture(picture: Picture) -> list[Any]:
    return [picture.uri, picture.width, picture.height]
