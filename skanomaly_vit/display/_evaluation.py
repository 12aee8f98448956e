"""`EvaluationDisplay`: scores of labelled images, kind by kind, around the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._utils.detectors import normality, require_normality, threshold_of
from skanomaly_vit._utils.labels import AUTO, as_labels, is_auto, which_are_anomalies
from skanomaly_vit.display._style import (
    BLUE,
    VERMILION,
    check_call,
    finite_vector,
    own_or_new_axes,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_ROW = 0.55  # inches

_SPREAD = 0.3  # of the points of a row, in rows

NORMAL_KIND = "normal"


class EvaluationDisplay:
    """Scores of labelled images, a row for each kind of defect, and the threshold.

    Create the display with `EvaluationDisplay.from_estimator` or
    `EvaluationDisplay.from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (n_images,)
        Scores of the images of each kind, higher = more normal; ``"normal"`` first.
    offset : float or None, default=None
        The threshold; images with lower scores are flagged.

    Attributes
    ----------
    flagged_ : dict of str to int
        Number of flagged images of each kind; empty without `offset`.
    ax_ : matplotlib Axes
        Axes with a point for each image.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    ScoreDisplay : Histogram of all anomalies together.
    skanomaly_vit.evaluation.evaluate_fitted : The figures.

    Examples
    --------
    >>> from skanomaly_vit.display import EvaluationDisplay
    >>> display = EvaluationDisplay.from_predictions(
    ...     [3, 2, 1, -9, 1.5], ["good", "good", "good", "crack", "stain"], offset=1.2,
    ...     anomaly_label=["crack", "stain"],
    ... )
    >>> display.flagged_
    {'normal': 1, 'crack': 1, 'stain': 0}
    """

    def __init__(self, scores: dict[str, np.ndarray], *, offset: float | None = None) -> None:
        self.scores = scores
        self.offset = offset

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        kinds: Any = None,
        anomaly_label: Any = AUTO,
        **options: Any,
    ) -> EvaluationDisplay:
        """Score images and draw the scores.

        Parameters
        ----------
        estimator : estimator
            A fitted outlier detector, or a pipeline that ends in one. Its ``offset_`` is the
            threshold; without a threshold there is no line.
        X : images
            Images of any form that `estimator` takes, which it has not seen.
        y : array-like of shape (n_images,)
            Label of each of `X`.
        kinds : array-like of shape (n_images,) or None, default=None
            Kind of defect of each image; those of normal images do not count. ``None`` takes the
            labels in `y`.
        anomaly_label : label, list of labels or "auto", default="auto"
            Labels of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
        **options : dict
            Options of `plot`: `ax`; others raise a TypeError.

        Returns
        -------
        display : EvaluationDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` gives no score of normality, a score is not finite, or lengths differ.
        """
        check_call(cls, "from_estimator", options)
        require_normality(estimator)
        which_are_anomalies(y, anomaly_label)
        return cls.from_predictions(
            normality(estimator, X),
            y,
            kinds=kinds,
            offset=threshold_of(estimator),
            anomaly_label=anomaly_label,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        scores: Any,
        y: Any,
        *,
        kinds: Any = None,
        offset: float | None = None,
        anomaly_label: Any = AUTO,
        **options: Any,
    ) -> EvaluationDisplay:
        """Draw existing scores.

        Parameters
        ----------
        scores : array-like of shape (n_images,)
            Score of each image, higher = more normal.
        y : array-like of shape (n_images,)
            Label of each image.
        kinds : array-like of shape (n_images,) or None, default=None
            Kind of defect of each image; those of normal images do not count. ``None`` takes the
            labels in `y`.
        offset : float or None, default=None
            The threshold, such as ``detector.offset_``; images with lower scores are flagged.
        anomaly_label : label, list of labels or "auto", default="auto"
            Labels of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
        **options : dict
            Options of `plot`: `ax`; others raise a TypeError.

        Returns
        -------
        display : EvaluationDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If a score is not finite, or lengths differ.
        """
        check_call(cls, "from_predictions", options)
        is_anomaly = which_are_anomalies(y, anomaly_label)
        values = finite_vector(scores, "scores", len(is_anomaly))
        if kinds is not None:
            names = as_labels(kinds, "kinds")
        else:
            names = ["anomaly"] * len(values) if is_auto(anomaly_label) else as_labels(y)
        if len(names) != len(values):
            raise ValueError(f"kinds holds {len(names)} labels for {len(values)} images")
        rows: dict[str, list[float]] = {}
        if not is_anomaly.all():
            rows[NORMAL_KIND] = values[~is_anomaly].tolist()
        for index in sorted(np.flatnonzero(is_anomaly), key=lambda index: str(names[index])):
            rows.setdefault(_row_name(names[index]), []).append(values[index])
        by_kind = {name: np.array(found) for name, found in rows.items()}
        return cls(by_kind, offset=offset).plot(**options)

    def plot(self, ax: Axes | None = None) -> EvaluationDisplay:
        """Draw a row of points for each kind.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. ``None`` makes a new figure.

        Returns
        -------
        self : EvaluationDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        self.flagged_ = {}
        if self.offset is not None:
            self.flagged_ = {k: int((v < self.offset).sum()) for k, v in self.scores.items()}
        self.ax_ = own_or_new_axes(ax, (8, 1.2 + _ROW * len(self.scores)))
        self.figure_ = self.ax_.figure
        rng = np.random.default_rng(0)  # points of equal scores lie apart, the same way each time
        for row, (kind, values) in enumerate(self.scores.items()):
            self._draw_row(kind, values, row + rng.uniform(-_SPREAD, _SPREAD, len(values)))
        self._draw_threshold()
        names = [self._title(kind, len(values)) for kind, values in self.scores.items()]
        self.ax_.set_yticks(range(len(names)), names)
        self.ax_.set_ylim(len(names) - 0.4, -0.6)
        self.ax_.set_xlabel("score (higher = more normal)")
        return self

    def _draw_row(self, kind: str, values: np.ndarray, heights: np.ndarray) -> None:
        color = BLUE if kind == NORMAL_KIND else VERMILION
        is_flagged = values < (-np.inf if self.offset is None else self.offset)
        for chosen, face in ((is_flagged, color), (~is_flagged, "none")):
            # A hollow point is one that passes, in gray print too.
            self.ax_.scatter(
                values[chosen], heights[chosen], s=16, facecolor=face, edgecolor=color, lw=0.8
            )

    def _draw_threshold(self) -> None:
        from matplotlib import rcParams

        if self.offset is None:
            return
        self.ax_.axvline(self.offset, color=rcParams["text.color"], linestyle="--", lw=1)
        self.ax_.annotate(
            f"flagged \u2190 {self.offset:.4g} \u2192 passed",
            (self.offset, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )

    def _title(self, kind: str, n_images: int) -> str:
        if self.offset is None:
            return f"{kind}\n{n_images} images"
        what = "flagged" if kind == NORMAL_KIND else "found"
        return f"{kind}\n{self.flagged_[kind]} of {n_images} {what}"


def _row_name(kind: Any) -> str:
    """Name of a kind of defects, even if somebody calls one "normal"."""
    return f"{kind} (defect)" if str(kind) == NORMAL_KIND else str(kind)
