"""Model files of older formats, brought to what the newest one says."""

from __future__ import annotations

from typing import Any


def upgrade(values: dict[str, Any], version: int) -> None:
    """Change the values of a file of format `version` in place; what is missing stays missing."""
    if version < 3:
        detector = _part(values, "detector")
        for estimator in (detector, _part(detector, "distillation")):
            _part(estimator, "parameters").pop("token_fraction", None)


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}
