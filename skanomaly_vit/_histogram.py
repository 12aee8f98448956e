"""Histogram of scores around the threshold."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np

from skanomaly_vit._pictures import data_uri

Array: TypeAlias = np.ndarray[Any, Any]

# Ink, and two fills that differ in brightness as well as in colour.
_LIGHT = ("#2b3440", ("#7fb2d9", "#c8501a"))
_DARK = ("#e4e7ec", ("#4a86b8", "#f0b429"))
_HATCHES = ("", "////")
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_BARS = 40
_TICKS = 8
_NARROW = 6  # inches


def draw_histogram(
    decision: Array,
    groups: dict[str, Array],
    *,
    inches: tuple[float, float],
    dark: bool = False,
) -> str:
    """Draw scores around the threshold; the data URI of an SVG.

    Scores of anomalies can lie a hundred times as far from the threshold as those of normal
    images: the axis is linear near the threshold and logarithmic far from it.

    Parameters
    ----------
    decision : ndarray of shape (n,)
        Scores minus threshold, negative = anomaly. A bar lies on one side of 0 only.
    groups : dict of str to ndarray of shape (n,), bool
        Masks of what is told apart by colour and hatching, stacked in this order; two at most.
    inches : (float, float)
        Width and height.
    dark : bool, default=False
        For a dark ground.
    """
    import matplotlib
    from matplotlib.figure import Figure

    ink, fills = _DARK if dark else _LIGHT
    # Text stays text; the same scores give the same file.
    settings: Any = {"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "histogram"}
    settings |= {"hatch.linewidth": 0.7, **dict.fromkeys(_INKED, ink)}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        edges = _set_up(axes, decision)
        bottom = np.zeros(len(edges) - 1)
        for (name, mask), fill, hatch in zip(groups.items(), fills, _HATCHES, strict=False):
            counts, _ = np.histogram(decision[mask], edges)
            look: Any = {"facecolor": fill, "edgecolor": ink, "linewidth": 0.6, "hatch": hatch}
            # One outline a group: a bar each takes most of the time.
            axes.stairs(bottom + counts, edges, baseline=bottom, fill=True, label=name, **look)
            bottom += counts
        axes.axvline(0, color=ink, linestyle="--", linewidth=1.4, label="threshold")
        figure.legend(
            loc="outside upper left", ncols=2 if inches[0] < _NARROW else 3, frameon=False
        )
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("svg+xml", stream.getvalue())


def _set_up(axes: Any, decision: Array) -> Array:
    """Give the axes their scales and names; the edges of the bars."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    linear_width = _linear_width(decision)
    edges = _edges(decision, linear_width)
    ticks = _ticks(edges, linear_width)
    axes.set_xscale("asinh", linear_width=linear_width)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(ticks, [f"{tick:,.12g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set(xlabel="decision = score - threshold (higher = more normal)", ylabel="images")
    axes.spines[["top", "right"]].set_visible(False)
    return edges


def _linear_width(decision: Array) -> float:
    """Distance from the threshold up to which the axis is about linear."""
    # A quarter of the images lie within, so that a few far ones do not press the rest together.
    return float(np.quantile(np.abs(decision), 0.25)) or float(np.abs(decision).max()) or 1.0


def _edges(decision: Array, linear_width: float) -> Array:
    """Edges of bars that are drawn equally wide, one of the edges being the threshold."""
    drawn = np.arcsinh(decision / linear_width)
    low, high = min(0.0, float(drawn.min())), max(0.0, float(drawn.max()))
    width = (high - low) / _BARS or 1.0
    # One bar more on each side: rounding must not leave the extremes out.
    steps = np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2)
    return linear_width * np.sinh(width * steps)


def _ticks(edges: Array, linear_width: float) -> list[float]:
    """0 and round numbers on both sides of it, drawn about equally far apart."""
    low, high = np.arcsinh(edges[[0, -1]] / linear_width)
    step = (high - low) / _TICKS
    places = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    # One digit that counts: 0.07, 300, 2e3.
    return sorted({float(f"{linear_width * np.sinh(place):.0e}") for place in places})
