"""Calibration: p-values, thresholds, false-discovery rates and drift tests from scores.

All of them need *calibration scores*: scores of normal images from which no step of the detector
has learned. A new normal image then has every rank among them with equal probability
(split-conformal prediction), for any detector and any images.
"""

from skanomaly_vit.calibration._bounds import false_alarm_bound, threshold_bound
from skanomaly_vit.calibration._drift import drift_test
from skanomaly_vit.calibration._p_values import (
    benjamini_hochberg,
    certified_p_values,
    conformal_p_values,
)
from skanomaly_vit.calibration._thresholds import conformal_threshold

__all__ = [
    "benjamini_hochberg",
    "certified_p_values",
    "conformal_p_values",
    "conformal_threshold",
    "drift_test",
    "false_alarm_bound",
    "threshold_bound",
]
