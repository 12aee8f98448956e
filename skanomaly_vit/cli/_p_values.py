"""P-values in the tables of the command line."""

from __future__ import annotations

import math
from typing import Any


def known_p_values(p_values: Any) -> list[float | None]:
    """P-values, with None for NaN: without calibration images, or for an unreadable image."""
    return [None if math.isnan(p_value) else float(p_value) for p_value in p_values]
