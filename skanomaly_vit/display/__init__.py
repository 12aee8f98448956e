"""Displays: pictures of scores, anomaly maps, blocks, training and lines, in scikit-learn's manner.

``from_estimator`` computes the data, ``from_predictions`` (`TrainingDisplay`: ``from_history``,
`EvidenceDisplay`: ``from_monitor``) takes existing data, and ``plot`` draws them again, for
instance on other axes. The displays import matplotlib only when they draw:
``pip install matplotlib``, or the extra ``skanomaly-vit[plot]``.
"""

from skanomaly_vit.display._blocks import BlockDiscrepancyDisplay
from skanomaly_vit.display._evaluation import EvaluationDisplay
from skanomaly_vit.display._evidence import EvidenceDisplay
from skanomaly_vit.display._gallery import GalleryDisplay
from skanomaly_vit.display._maps import AnomalyMapDisplay
from skanomaly_vit.display._scores import ScoreDisplay
from skanomaly_vit.display._training import TrainingDisplay

__all__ = [
    "AnomalyMapDisplay",
    "BlockDiscrepancyDisplay",
    "EvaluationDisplay",
    "EvidenceDisplay",
    "GalleryDisplay",
    "ScoreDisplay",
    "TrainingDisplay",
]
