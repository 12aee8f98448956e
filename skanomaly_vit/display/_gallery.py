"""`GalleryDisplay`: images in the order of their scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._images.pixels import shrink
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.detectors import normality, require_normality, threshold_of
from skanomaly_vit.calibration._p_values import CalibrationScores
from skanomaly_vit.display._style import (
    TITLE_PAD,
    VERMILION,
    check_call,
    divided_axes,
    finite_vector,
    open_shown,
    own_or_new_axes,
    require_matplotlib,
    show_image,
    titles_of_source,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_THUMBNAIL = 320  # pixels

_GRAY = "#999999"


class GalleryDisplay:
    """Images from the most normal to the most abnormal; flagged images are marked.

    Create the display with `GalleryDisplay.from_estimator` or `GalleryDisplay.from_predictions`,
    which choose the images. All parameters are stored as attributes.

    Parameters
    ----------
    images : list of ndarray of shape (height, width, 3), uint8
        The shown images, of any sizes, the most normal first.
    scores : ndarray of shape (n_shown,)
        Their scores, higher = more normal.
    offset : float or None, default=None
        The threshold; images with lower scores are flagged.
    indices : ndarray of shape (n_shown,), int, or None, default=None
        Index of each image among the scored ones.
    n_scored : int or None, default=None
        Number of scored images; ``None`` if the display shows all.
    titles : list of str or None, default=None
        Title of each image. ``None`` shows scores alone.
    p_values : ndarray of shape (n_shown,) or None, default=None
        Their p-values: about that share of normal images looks as abnormal.

    Attributes
    ----------
    axes_ : ndarray of shape (n_shown,), dtype object
        matplotlib Axes of each image.
    ax_ : matplotlib Axes
        Axes that hold the title, and `axes_` in their place.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    AnomalyMapDisplay : Shows the place of the anomaly in the image.
    ScoreDisplay : Shows the distribution of the scores.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.display import GalleryDisplay
    >>> images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    >>> display = GalleryDisplay.from_predictions(images, [1, 5, 3, 2, 4], offset=2, n_images=3)
    >>> display.indices
    array([1, 2, 0])
    """

    def __init__(
        self,
        images: list[np.ndarray],
        scores: np.ndarray,
        *,
        offset: float | None = None,
        indices: np.ndarray | None = None,
        n_scored: int | None = None,
        titles: list[str] | None = None,
        p_values: np.ndarray | None = None,
    ) -> None:
        self.images = images
        self.scores = scores
        self.offset = offset
        self.indices = indices
        self.n_scored = n_scored
        self.titles = titles
        self.p_values = p_values

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        n_images: int = 24,
        titles: Iterable[Any] | None = None,
        **options: Any,
    ) -> GalleryDisplay:
        """Score images and draw them.

        Parameters
        ----------
        estimator : estimator
            A fitted outlier detector, or a pipeline that ends in one. Its ``offset_`` is the
            threshold; without a threshold the display marks no image.
        X : images
            Images of any form that `estimator` takes.
        n_images : int, default=24
            Number of images to show, at least 2: the most normal, the most abnormal, and images
            at evenly spaced ranks between.
        titles : iterable of str or None, default=None
            Title of each of `X`. ``None`` is the name of its file, if there are files.
        **options : dict
            Options of `plot`: `ax` and `n_columns`; others raise a TypeError.

        Returns
        -------
        display : GalleryDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` gives no score of normality, or a parameter is invalid.
        """
        check_call(cls, "from_estimator", options)
        require_normality(estimator)
        _check_counts(n_images=n_images, **options)
        source = open_shown(X, estimator)
        names = _titles(titles, source)
        scores = normality(estimator, X)
        known = CalibrationScores.of(estimator)
        return cls.from_predictions(
            source,
            scores,
            offset=threshold_of(estimator),
            n_images=n_images,
            titles=names,
            p_values=None if known is None else known.p_values(scores),
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        scores: Any,
        *,
        offset: float | None = None,
        n_images: int = 24,
        titles: Iterable[Any] | None = None,
        p_values: Any = None,
        **options: Any,
    ) -> GalleryDisplay:
        """Draw images in the order of existing scores.

        Parameters
        ----------
        images : images
            Images of any form that `TransformalyDetector.fit` takes. The display decodes only the
            images that it shows.
        scores : array-like of shape (n_images,)
            Score of each image, higher = more normal.
        offset : float or None, default=None
            The threshold, such as ``detector.offset_``; images with lower scores are flagged.
        n_images : int, default=24
            Number of images to show, at least 2: the most normal, the most abnormal, and images
            at evenly spaced ranks between.
        titles : iterable of str or None, default=None
            Title of each of `images`. ``None`` is the name of its file, if there are files.
        p_values : array-like of shape (n_images,) or None, default=None
            P-value of each of `images`, as ``detector.p_values`` gives them.
        **options : dict
            Options of `plot`: `ax` and `n_columns`; others raise a TypeError.

        Returns
        -------
        display : GalleryDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If a score is not finite, the number of scores differs from that of images, or a
            parameter is invalid.
        """
        check_call(cls, "from_predictions", options)
        _check_counts(n_images=n_images, **options)
        source = open_shown(images)
        scores = finite_vector(scores, "scores", len(source))
        shown = _spaced_ranks(scores, n_images)
        names = _titles(titles, source)
        if p_values is not None:
            p_values = finite_vector(p_values, "p_values", len(source))[shown]
        display = cls(
            _thumbnails(source, shown),
            scores[shown],
            offset=offset,
            indices=shown,
            n_scored=len(source),
            titles=None if names is None else [names[index] for index in shown],
            p_values=p_values,
        )
        return display.plot(**options)

    def plot(self, ax: Axes | None = None, *, n_columns: int = 6) -> GalleryDisplay:
        """Draw the images row by row, each with its score.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes whose place the images share. ``None`` makes a new figure.
        n_columns : int, default=6
            Images in a row.

        Returns
        -------
        self : GalleryDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `n_columns` is below 1, or `ax` has no place in a grid.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        _check_counts(n_columns=n_columns)
        n_shown = len(self.images)
        n_columns = min(n_columns, n_shown)
        n_rows = math.ceil(n_shown / n_columns)
        shape = float(np.median([image.shape[0] / image.shape[1] for image in self.images]))
        row = 0.45 + 1.8 * min(max(shape, 0.4), 1.6) + (0.15 if self.titles else 0.0)
        self.ax_ = own_or_new_axes(ax, (max(6.0, 1.9 * n_columns), 0.6 + row * n_rows))
        self.figure_ = self.ax_.figure
        grid = divided_axes(self.ax_, n_rows, n_columns).ravel()
        for empty in grid[n_shown:]:
            empty.remove()
        self.axes_ = grid[:n_shown]
        for index, place in enumerate(self.axes_):
            self._draw_image(place, index)
        self.ax_.set_title(self._title(), fontsize=10, pad=TITLE_PAD)
        return self

    def _draw_image(self, ax: Axes, index: int) -> None:
        show_image(ax, self.images[index])
        lines = [] if self.titles is None else [self.titles[index]]
        p_value = "" if self.p_values is None else f", p {self.p_values[index]:.2g}"
        lines.append(f"{self.scores[index]:.4g}{p_value}")
        is_flagged = self.offset is not None and self.scores[index] < self.offset
        if is_flagged:
            lines.append("flagged")
        ax.set_title("\n".join(lines), fontsize=10, fontweight="bold" if is_flagged else "normal")
        for spine in ax.spines.values():
            # The width marks flagged images in gray print too.
            spine.set(color=VERMILION if is_flagged else _GRAY, linewidth=4 if is_flagged else 0.8)

    def _title(self) -> str:
        n_shown = len(self.images)
        title = f"{n_shown} images by score, the most normal first"
        if self.n_scored is not None and self.n_scored > n_shown:
            title = f"{n_shown} of {self.n_scored} images by score, the most normal first:"
            title += "\nboth ends, and evenly spaced ranks between"
        if self.offset is not None:
            title += f"\nwide frame: flagged, score below {self.offset:.4g}"
        return title


def _titles(titles: Iterable[Any] | None, source: ImageSource) -> list[str] | None:
    """Titles of images; None for images that are no files and have none."""
    if titles is None and all(source.path(index) is None for index in range(len(source))):
        return None
    return titles_of_source(titles, source)


def _check_counts(*, n_images: int = 24, n_columns: int = 6, **_: Any) -> None:
    for name, value, least in (("n_images", n_images, 2), ("n_columns", n_columns, 1)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r} is not an int of at least {least}")


def _spaced_ranks(scores: np.ndarray, n_images: int) -> np.ndarray:
    """Indices of the images to show, the most normal first; ties keep their order."""
    order = np.argsort(-scores, kind="stable")
    if len(order) <= n_images:
        return order
    return order[np.linspace(0, len(order) - 1, n_images).round().astype(int)]


def _thumbnails(source: ImageSource, indices: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(shrink(source[int(index)], _THUMBNAIL)) for index in indices]
