"""`ScoreDisplay`: a histogram of scores and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_consistent_length

from skanomaly_vit._utils.detectors import normality, require_normality, threshold_of
from skanomaly_vit._utils.labels import AUTO, which_are_anomalies
from skanomaly_vit.display._style import (
    BLUE,
    SKY,
    VERMILION,
    check_call,
    finite_vector,
    known_option,
    legend_in_headroom,
    own_or_new_axes,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


STATS = {"share": "share of the images of a kind (%)", "count": "number of images"}

SCALES = ("auto", "linear", "symlog")

#: Color and hatch of the bars of each kind of images.
_BARS = {
    "normal images": (BLUE, ""),
    "new images": (VERMILION, "////"),
    "new, normal": (SKY, "...."),
    "new, anomalies": (VERMILION, "////"),
}

# With a lowest score beyond 20 medians, a linear axis would show one tall bar.
_LONG_TAIL = 20.0


class ScoreDisplay:
    """Histogram of scores: normal images, new images, and the share that is flagged.

    Create the display with `ScoreDisplay.from_estimator` or `ScoreDisplay.from_predictions`.
    All parameters are stored as attributes.

    Parameters
    ----------
    scores : ndarray of shape (n_images,)
        Scores of the new images, higher = more normal.
    offset : float or None, default=None
        The threshold; images with lower scores are flagged.
    is_anomaly : ndarray of shape (n_images,), bool, or None, default=None
        Mask of the anomalies among the new images, if known.
    normal_scores : ndarray of shape (n_normal,) or None, default=None
        Scores of normal images.

    Attributes
    ----------
    bin_edges_ : ndarray of shape (n_bins + 1,)
        Edges of the bars, the same for all kinds of images.
    counts_ : dict of str to ndarray of shape (n_bins,), int
        Number of images in each bin, under the name of their kind: ``"normal images"``,
        ``"new images"``, or, with labels, ``"new, normal"`` and ``"new, anomalies"``.
    flagged_ : dict of str to float
        Share of each kind with scores below `offset`; empty without `offset`.
    ax_ : matplotlib Axes
        Axes with the histogram.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    GalleryDisplay : Shows the images from most normal to most abnormal.

    Examples
    --------
    >>> from skanomaly_vit.display import ScoreDisplay
    >>> display = ScoreDisplay.from_predictions([-9, 2, 3], offset=0, normal_scores=[1, 2, 3, 4])
    >>> round(display.flagged_["new images"], 2)
    0.33
    """

    def __init__(
        self,
        scores: np.ndarray,
        *,
        offset: float | None = None,
        is_anomaly: np.ndarray | None = None,
        normal_scores: np.ndarray | None = None,
    ) -> None:
        self.scores = scores
        self.offset = offset
        self.is_anomaly = is_anomaly
        self.normal_scores = normal_scores

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        X_normal: Any = None,
        y: Any = None,
        *,
        anomaly_label: Any = AUTO,
        **options: Any,
    ) -> ScoreDisplay:
        """Score images and draw the histogram.

        Parameters
        ----------
        estimator : estimator
            A fitted outlier detector, or a pipeline that ends in one. Its ``offset_`` is the
            threshold; without a threshold there is no line.
        X : images
            New images, of any form that `estimator` takes.
        X_normal : images or None, default=None
            Normal images to compare with, preferably not training images of `estimator`.
        y : array-like of shape (n_images,) or None, default=None
            Label of each of `X`, if known.
        anomaly_label : label, list of labels or "auto", default="auto"
            Labels of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
        **options : dict
            Options of `plot`: `ax`, `bins`, `stat` and `scale`; others raise a TypeError.

        Returns
        -------
        display : ScoreDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` gives no score of normality, or `y` and `X` differ in length.
        """
        check_call(cls, "from_estimator", options)
        require_normality(estimator)
        _check_values(**options)
        if y is not None:
            which_are_anomalies(y, anomaly_label)
            check_consistent_length(X, y)
        return cls.from_predictions(
            normality(estimator, X),
            threshold_of(estimator),
            y=y,
            normal_scores=None if X_normal is None else normality(estimator, X_normal),
            anomaly_label=anomaly_label,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        scores: Any,
        offset: float | None = None,
        *,
        y: Any = None,
        normal_scores: Any = None,
        anomaly_label: Any = AUTO,
        **options: Any,
    ) -> ScoreDisplay:
        """Draw the histogram of existing scores.

        Parameters
        ----------
        scores : array-like of shape (n_images,)
            Scores of the new images, higher = more normal.
        offset : float or None, default=None
            The threshold, such as ``detector.offset_``; images with lower scores are flagged.
        y : array-like of shape (n_images,) or None, default=None
            Label of each new image, if known.
        normal_scores : array-like of shape (n_normal,) or None, default=None
            Scores of normal images to compare with.
        anomaly_label : label, list of labels or "auto", default="auto"
            Labels of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
        **options : dict
            Options of `plot`: `ax`, `bins`, `stat` and `scale`; others raise a TypeError.

        Returns
        -------
        display : ScoreDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If a score is not finite, or `y` and `scores` differ in length.
        """
        check_call(cls, "from_predictions", options)
        scores = finite_vector(scores, "scores")
        is_anomaly = None if y is None else which_are_anomalies(y, anomaly_label)
        if is_anomaly is not None and len(is_anomaly) != len(scores):
            raise ValueError(
                f"y holds {len(is_anomaly)} labels for {len(scores)} scores; pass one each"
            )
        if normal_scores is not None:
            normal_scores = finite_vector(normal_scores, "normal_scores")
        display = cls(scores, offset=offset, is_anomaly=is_anomaly, normal_scores=normal_scores)
        return display.plot(**options)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        bins: int | Sequence[float] = 20,
        stat: str = "share",
        scale: str = "auto",
    ) -> ScoreDisplay:
        """Draw the histogram.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. ``None`` makes a new figure.
        bins : int or sequence of float, default=20
            Number of bars, or their edges.
        stat : {"share", "count"}, default="share"
            Height of a bar: the share of its kind in percent, or the number of images.
        scale : {"auto", "linear", "symlog"}, default="auto"
            Axis of scores. ``"symlog"`` is linear around 0 and logarithmic beyond; ``"auto"``
            chooses it if a few scores lie far below all others.

        Returns
        -------
        self : ScoreDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If an option is invalid.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        _check_values(stat=stat, scale=scale)
        kinds = self._kinds()
        pooled = np.concatenate(list(kinds.values()))
        linear_up_to = _linear_up_to(pooled, kinds, scale)
        self.bin_edges_ = _edges(self._ends(pooled), bins, linear_up_to)
        self.counts_ = {k: np.histogram(v, self.bin_edges_)[0] for k, v in kinds.items()}
        self.flagged_ = {
            kind: float(np.mean(values < self.offset))
            for kind, values in kinds.items()
            if self.offset is not None
        }
        self.ax_ = own_or_new_axes(ax, (8, 4.5))
        self.figure_ = self.ax_.figure
        if linear_up_to is not None:
            self.ax_.set_xscale("symlog", linthresh=linear_up_to)
        self._draw(stat)
        return self

    def _kinds(self) -> dict[str, np.ndarray]:
        """Scores of each kind of images, normal images first."""
        kinds = {}
        if self.normal_scores is not None:
            kinds["normal images"] = self.normal_scores
        if self.is_anomaly is None:
            return kinds | {"new images": self.scores}
        known = {
            "new, normal": self.scores[~self.is_anomaly],
            "new, anomalies": self.scores[self.is_anomaly],
        }
        return kinds | {kind: scores for kind, scores in known.items() if len(scores)}

    def _ends(self, pooled: np.ndarray) -> tuple[float, float]:
        """Ends of the axis, which shows all scores and the threshold."""
        values = pooled if self.offset is None else np.append(pooled, self.offset)
        return float(values.min()), float(values.max())

    def _draw(self, stat: str) -> None:
        from matplotlib import rcParams

        for kind, counts in self.counts_.items():
            color, hatch = _BARS[kind]
            n_images = len(self._kinds()[kind])
            flagged = f", {self.flagged_[kind]:.1%} flagged" if self.flagged_ else ""
            heights = counts if stat == "count" else 100 * counts / n_images
            # A fill of its own: in SVG a hatch is as transparent as its fill.
            self.ax_.fill_between(
                self.bin_edges_, np.append(heights, 0), step="post", color=color, alpha=0.35, lw=0
            )
            self.ax_.stairs(
                heights,
                self.bin_edges_,
                fill=True,
                facecolor="none",
                edgecolor=color,
                hatch=hatch,
                linewidth=1.5,
                label=f"{kind}: {n_images}{flagged}",
            )
        if self.offset is not None:
            self.ax_.axvline(
                self.offset,
                color=rcParams["text.color"],
                linestyle="--",
                label=f"threshold {self.offset:.4g}, flagged if lower",
            )
        is_bent = self.ax_.get_xscale() == "symlog"
        axis = "; logarithmic far from 0" if is_bent else ""
        self.ax_.set(xlabel=f"score (higher = more normal{axis})", ylabel=STATS[stat])
        if stat == "count" and self.ax_.get_yscale() == "linear":
            self.ax_.locator_params(axis="y", integer=True)
        legend_in_headroom(self.ax_, 1)


def _check_values(*, stat: str = "share", scale: str = "auto", **_: Any) -> None:
    known_option("stat", stat, tuple(STATS))
    known_option("scale", scale, SCALES)


def _linear_up_to(pooled: np.ndarray, kinds: dict[str, np.ndarray], scale: str) -> float | None:
    """Distance from 0 up to which a symlog axis is linear; None for a linear axis."""
    if scale == "linear":
        return None
    usual = float(np.median(np.abs(next(iter(kinds.values())))))
    if usual == 0:
        usual = float(np.abs(pooled).max()) / _LONG_TAIL or 1.0
    is_long = pooled.min() < -_LONG_TAIL * usual
    return usual if is_long or scale == "symlog" else None


def _edges(
    ends: tuple[float, float], bins: int | Sequence[float], linear_up_to: float | None
) -> np.ndarray:
    """Bin edges, evenly spaced on the drawn axis."""
    if not isinstance(bins, Integral):
        edges = np.histogram_bin_edges(np.array(ends), np.asarray(bins, dtype=np.float64))
        if edges[0] > ends[0] or edges[-1] < ends[1]:
            raise ValueError(
                f"bins run from {edges[0]:g} to {edges[-1]:g}, scores and threshold from "
                f"{ends[0]:g} to {ends[1]:g}; pass wider edges, or a number of bins"
            )
        return edges
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1, or a sequence of edges")
    if linear_up_to is None or ends[0] == ends[1]:
        return np.histogram_bin_edges(np.array(ends), bins=int(bins))
    from matplotlib.scale import SymmetricalLogTransform

    axis = SymmetricalLogTransform(10, linear_up_to, 1)
    first, last = map(float, axis.transform(np.array(ends)))
    places = np.linspace(first, last, int(bins) + 1)
    edges = np.asarray(axis.inverted().transform(places))
    edges[[0, -1]] = ends  # rounding must not lose the extremes
    return edges
