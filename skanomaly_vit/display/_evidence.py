"""`EvidenceDisplay`: the evidence that a line has changed, image by image."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._utils.certificates import percent
from skanomaly_vit.display._style import (
    BLUE,
    VERMILION,
    check_call,
    legend_in_headroom,
    own_or_new_axes,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class EvidenceDisplay:
    """Evidence over images that a line has changed, the alarm line, and the change point.

    Create the display with `EvidenceDisplay.from_monitor`. All parameters are stored as attributes.

    Parameters
    ----------
    images : ndarray of shape (n_points,), int
        Numbers of images.
    log10_evidence : ndarray of shape (n_points,), float64
        Evidence after each of them.
    level : float
        A line without a change ever reaches ``1 / level`` with at most this probability.
    alarm_at : int or None, default=None
        Number of the image at which the evidence reached ``1 / level``.
    since : int or None, default=None
        Number of the image with which the change began, estimated.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the chart.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skanomaly_vit.monitoring.LineMonitor : Computes the evidence.

    Examples
    --------
    >>> from skanomaly_vit.display import EvidenceDisplay
    >>> from skanomaly_vit.monitoring import LineMonitor
    >>> monitor = LineMonitor(range(100))
    >>> _ = monitor.update([50, 20, 70, 90, 10])
    >>> EvidenceDisplay.from_monitor(monitor).images
    array([0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        images: np.ndarray,
        log10_evidence: np.ndarray,
        level: float,
        *,
        alarm_at: int | None = None,
        since: int | None = None,
    ) -> None:
        self.images = images
        self.log10_evidence = log10_evidence
        self.level = level
        self.alarm_at = alarm_at
        self.since = since

    @classmethod
    def from_monitor(cls, monitor: Any, group: Hashable = None, **options: Any) -> EvidenceDisplay:
        """Draw the evidence of a monitor.

        Parameters
        ----------
        monitor : LineMonitor
            A monitor that has seen an image since its calibration.
        group : str, int or None, default=None
            One of its groups; ``None`` is the whole line.
        **options : dict
            Options of `plot`: `ax`; others raise a TypeError.

        Returns
        -------
        display : EvidenceDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If there is no such group, or no image since the calibration.
        """
        check_call(cls, "from_monitor", options)
        history, status = monitor.history(group), monitor.status(group)
        if not len(history.images):
            raise ValueError("the monitor has seen no image since its calibration; update it first")
        display = cls(
            history.images, history.log10_evidence, monitor.level,
            alarm_at=status.alarm_at, since=status.since,
        )  # fmt: skip
        return display.plot(**options)

    def plot(self, ax: Axes | None = None) -> EvidenceDisplay:
        """Draw the chart.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. ``None`` makes a new figure.

        Returns
        -------
        self : EvidenceDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib import rcParams

        self.ax_ = own_or_new_axes(ax, (8, 4.5))
        self.figure_ = self.ax_.figure
        self.ax_.plot(self.images, self.log10_evidence, color=BLUE, label="evidence")
        self.ax_.axhline(
            -math.log10(self.level), color=rcParams["text.color"], linestyle="--",
            label=f"alarm: reached in at most {percent(self.level)} of lines without a change",
        )  # fmt: skip
        if self.since is not None:
            self.ax_.axvline(
                self.since, color=VERMILION, linestyle=":",
                label=f"changed since about image {self.since}",
            )  # fmt: skip
        if self.alarm_at is not None:
            self.ax_.plot(
                [self.alarm_at], [-math.log10(self.level)], "o", color=VERMILION,
                label=f"alarm at image {self.alarm_at}",
            )  # fmt: skip
        self.ax_.set(xlabel="number of the image", ylabel="evidence of a change (powers of 10)")
        legend_in_headroom(self.ax_, 1)
        return self
