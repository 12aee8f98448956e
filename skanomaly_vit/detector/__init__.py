"""Transformaly detector: two feature spaces, a density in each, one score, one threshold."""

from skanomaly_vit.detector._detector import TransformalyDetector

__all__ = ["TransformalyDetector"]
