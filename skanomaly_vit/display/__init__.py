"""Displays: pictures of what a detector does, in the manner of scikit-learn's.

Each has ``from_estimator``, for what has still to be computed, and ``from_predictions``
(`TrainingDisplay`: ``from_history``), for what is there already; ``plot`` draws it again, for
instance on other axes. matplotlib is imported when something is drawn, not before:
``pip install matplotlib``, or the extra ``skanomaly-vit[plot]``.
"""

from skanomaly_vit.display._blocks import BlockDiscrepancyDisplay
from skanomaly_vit.display._gallery import GalleryDisplay
from skanomaly_vit.display._maps import AnomalyMapDisplay
from skanomaly_vit.display._scores import ScoreDisplay
from skanomaly_vit.display._training import TrainingDisplay

__all__ = [
    "AnomalyMapDisplay",
    "BlockDiscrepancyDisplay",
    "GalleryDisplay",
    "ScoreDisplay",
    "TrainingDisplay",
]
