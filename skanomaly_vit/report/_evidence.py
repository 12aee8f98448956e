"""Chart of a report: the evidence that the line has changed, image by image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from skanomaly_vit._utils.certificates import percent
from skanomaly_vit.display import EvidenceDisplay
from skanomaly_vit.display._overlay import Encoded, Picture
from skanomaly_vit.monitoring import LineMonitor
from skanomaly_vit.report._calibration import Calibration

Array: TypeAlias = np.ndarray[Any, Any]

_SIZE, _DPI = (8, 3.2), 120


@dataclass(frozen=True)
class Evidence:
    """The chart, and what it says in words."""

    chart: Picture
    verdict: str


def draw_evidence(scores: Array, calibration: Calibration | None) -> Evidence:
    """Watch scores in the order in which their images came.

    Raises
    ------
    ValueError
        If no images calibrate.
    """
    if calibration is None:
        raise ValueError(
            "in_order=True compares images with those that calibrate, and the detector has none; "
            "fit with validation_fraction above 0, or leave in_order out"
        )
    monitor = LineMonitor(_one_of_each_unit(calibration))
    status = monitor.update(scores)
    if status.changed:
        verdict = (
            f"The line has changed: alarm at image {status.alarm_at + 1}, scores are "
            f"{status.direction}, probably since image {status.since + 1}."
        )
    else:
        verdict = (
            f"No change was seen in {status.n_images} images. A line without a change ever gives "
            f"an alarm with a probability of at most {percent(monitor.level)}."
        )
    return Evidence(_chart(monitor), verdict)


def _one_of_each_unit(calibration: Calibration) -> Array:
    """Calibration scores that are independent of each other: a monitor needs such."""
    if calibration.groups is None:
        return calibration.scores
    rng = np.random.default_rng(0)
    order = rng.permutation(len(calibration.scores))  # not the lowest of each
    _, first = np.unique(calibration.groups[order], return_index=True)
    return calibration.scores[order[first]]


def _chart(monitor: LineMonitor) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    EvidenceDisplay.from_monitor(monitor, ax=figure.subplots())
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    width, height = (round(_DPI * side) for side in _SIZE)
    return Encoded("png", content.getvalue(), width, height).embed()
