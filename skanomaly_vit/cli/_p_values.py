"""P-values of scores, for models that have calibration images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector


def p_values_or_none(detector: TransformalyDetector, scores: Any) -> list[float | None]:
    """P-value of each score; None without calibration images, or for a score of NaN."""
    import numpy as np

    from skanomaly_vit.detector._dataframes import p_values_of

    values = np.asarray(scores, dtype=np.float64)
    if detector.calibration_scores_ is None:
        return [None] * len(values)
    found = p_values_of(detector.calibration_scores_, values, detector.calibration_units_)
    return [None if np.isnan(p_value) else float(p_value) for p_value in found]
