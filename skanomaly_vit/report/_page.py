"""Content of a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from skanomaly_vit._utils.provenance import Parameter
from skanomaly_vit.display._overlay import Picture, Scale
from skanomaly_vit.report._calibration import Calibration
from skanomaly_vit.report._evidence import Evidence
from skanomaly_vit.report._figures import Kind, Statistic
from skanomaly_vit.report._histogram import Histogram
from skanomaly_vit.report._pictures import Copies, Enlarged


@dataclass(frozen=True)
class ImageRow:
    """An image in the list.

    Parameters
    ----------
    name, path : str
        Printable name; path below the common folder, as the file system has it.
    score : float
        Higher = more normal.
    p_value : float or None
        Small = abnormal; None without calibration scores.
    is_flagged : bool
        Whether the score is below the threshold of the detector.
    label : str
        Known label, or empty.
    copies : Copies
    """

    rank: int
    name: str
    path: str
    score: float
    p_value: float | None
    is_flagged: bool
    label: str
    copies: Copies


@dataclass(frozen=True)
class Card:
    """A large image and its row."""

    row: ImageRow
    copy: Enlarged


@dataclass(frozen=True)
class Page:
    """Content of a report."""

    title: str
    created: datetime
    statistics: list[Statistic]
    kinds: list[Kind]
    guarantees: list[Statistic]
    notes: list[str]
    evidence: Evidence | None
    histogram: Histogram
    most_abnormal: list[Card]
    least_certain: list[Card]
    scale: Scale | None
    is_range_given: bool
    colorbar: Picture | None
    rows: list[ImageRow]
    calibration: Calibration | None
    offset: float
    detector: str
    root: str
    has_files: bool
    parameters: list[Parameter]
    versions: dict[str, str]
    fingerprint: str | None

    @property
    def labels_of_anomalies(self) -> list[str]:
        return [kind.label for kind in self.kinds if kind.is_anomaly]

    @property
    def n_flagged(self) -> int:
        return sum(row.is_flagged for row in self.rows)
