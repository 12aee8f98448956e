"""Card of a fitted detector in a notebook: what it has learned, and what its threshold promises."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.utils import estimator_html_repr

#: Size of the histogram in pixels, and its number of bars.
_WIDTH, _HEIGHT, _BARS = 320, 70, 32

_FRAME = "border:1px solid #8886;border-radius:6px;padding:.7em 1em;max-width:46em"


class NotebookCardMixin:
    """Shows a fitted detector as a card, with the parameters folded below."""

    # scikit-learn has a method that both call, to be overridden in place of them, from 1.7 on.
    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = {"text/plain": repr(self)}
        if get_config()["display"] == "diagram":
            bundle["text/html"] = self._repr_html_inner()
        return bundle

    def _repr_html_inner(self) -> str:
        """HTML for a notebook; scikit-learn's diagram of the parameters until `fit`."""
        diagram = str(estimator_html_repr(self))
        if not hasattr(self, "offset_"):
            return diagram
        return (
            f'<div style="{_FRAME}"><strong>{escape(type(self).__name__)}</strong>, fitted'
            f"<table>{''.join(map(_row, describe(self).items()))}</table>{_histogram(self)}"
            f"<details><summary>Parameters</summary>{diagram}</details></div>"
        )


def describe(detector: Any) -> dict[str, str]:
    """What a fitted detector has learned, line by line, for people."""
    recipe = detector.recipe_
    n_held_out = len(detector.validation_indices_)
    held_out = f", {n_held_out} of them held out" if n_held_out else ""
    certificate = detector._certificate()
    students = f" and {recipe.n_blocks} students" if recipe.n_blocks else ""
    return {
        "learned from": f"{detector.n_samples_fit_} images{held_out}",
        "network": _name(detector.backbone)
        + f" in {detector.dtype_}"
        + _sight(detector.features_._teacher),
        "looks at": f"{', '.join(recipe.views)}{students}",
        "threshold": f"{detector.offset_:.4g}; a lower score is an anomaly",
        "false alarms": certificate.describe_rate(),
        "calibration": certificate.describe_calibration(),
    }


def _name(backbone: Any) -> str:
    return backbone if isinstance(backbone, str) else type(backbone).__name__


def _sight(teacher: Any) -> str:
    """Pixels that a network sees; nothing if it is not loaded, which a card must not do."""
    if teacher is None:
        return ""
    rows, columns = teacher.preprocessing.image_size
    return f", which sees {columns} x {rows} pixels"


def _row(item: tuple[str, str]) -> str:
    name, value = map(escape, item)
    style = "text-align:left;padding:.1em .8em .1em 0"
    nowrap = f"{style};white-space:nowrap"
    return f'<tr><th scope="row" style="{nowrap}">{name}</th><td style="{style}">{value}</td></tr>'


def _histogram(detector: Any) -> str:
    """Histogram of the calibration scores with the threshold, in SVG; empty without scores."""
    scores = detector.calibration_scores_
    if scores is None:
        return ""
    low, high = min(scores.min(), detector.offset_), max(scores.max(), detector.offset_)
    span = (high - low) or 1.0
    counts, _ = np.histogram(scores, bins=_BARS, range=(low, low + span))
    width, tallest = _WIDTH / _BARS, counts.max()
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{_HEIGHT * (1 - count / tallest):.1f}" '
        f'width="{width - 1:.1f}" height="{_HEIGHT * count / tallest:.1f}"/>'
        for i, count in enumerate(counts)
        if count
    )
    at = (detector.offset_ - low) / span * _WIDTH
    return (
        f'<svg role="img" viewBox="-2 0 {_WIDTH + 4} {_HEIGHT + 16}" width="{_WIDTH + 4}" '
        f'aria-label="Scores of {len(scores)} held-out normal images; the threshold is '
        f'{detector.offset_:.4g}"><g fill="#6b93c4">{bars}</g>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT}" stroke="#d1600f" '
        f'stroke-width="2"/><text x="0" y="{_HEIGHT + 13}" font-size="11" fill="currentColor">'
        f"held-out scores, {low:.3g} to {high:.3g}; line: threshold"
        "</text></svg>"
    )
