"""`AnomalyMapDisplay`: anomaly maps laid over their images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._images.map_range import check_map_range
from skanomaly_vit._images.masks import read_mask
from skanomaly_vit._images.pixels import as_uint8
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit.calibration._p_values import CalibrationScores
from skanomaly_vit.display._style import (
    BLACK,
    OPACITY,
    SEQUENTIAL,
    TITLE_PAD,
    check_call,
    divided_axes,
    finite_vector,
    open_shown,
    own_or_new_axes,
    require_matplotlib,
    show_image,
    titles_of,
    titles_of_source,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Two lines: a longer line would exceed the colorbar of a single image.
_LABEL = "anomaly map (standard deviations\nof normal patches)"

_MAX_ROWS = 50

_LEAST_HEIGHT = 2.7  # of a figure, in inches: the length of the label of the colorbar

_TALLEST = 1.5  # height of the place of an image, in widths

_WHITE = "#FFFFFF"


class AnomalyMapDisplay:
    """Images, each beside a copy under its anomaly map.

    All images share one color scale, the same in all displays: from 2 to 8 standard deviations of
    normal patches, above their mean. Create the display with `AnomalyMapDisplay.from_estimator` or
    `AnomalyMapDisplay.from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    images : list of ndarray of shape (height, width, 3), uint8
        The images, of any sizes.
    maps : list of ndarray of shape (height, width)
        The anomaly map of each image, higher = more abnormal, in standard deviations of normal
        patches.
    masks : list of (ndarray of shape (height, width), bool, or None), or None, default=None
        True defects of each image, if known.
    titles : list of str or None, default=None
        Title of each image. ``None`` is ``"image 0"``, ``"image 1"``...
    p_values : ndarray of shape (n_images,) or None, default=None
        Their p-values: about that share of normal images looks as abnormal.

    Attributes
    ----------
    axes_ : ndarray of shape (n_images, 2), dtype object
        matplotlib Axes: the image, and the map on it.
    colorbar_ : matplotlib Colorbar
        Color scale of the maps.
    ax_ : matplotlib Axes
        Axes that hold `axes_` in their place.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    GalleryDisplay : Finds the images to look at.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.display import AnomalyMapDisplay
    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    >>> display = AnomalyMapDisplay.from_predictions(images, rng.normal(2, 3, (2, 32, 48)))
    >>> display.axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        images: list[np.ndarray],
        maps: list[np.ndarray],
        *,
        masks: list[np.ndarray | None] | None = None,
        titles: list[str] | None = None,
        p_values: np.ndarray | None = None,
    ) -> None:
        self.images = images
        self.maps = maps
        self.masks = masks
        self.titles = titles
        self.p_values = p_values

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        method: str | None = None,
        masks: Iterable[Any] | None = None,
        titles: Iterable[Any] | None = None,
        **options: Any,
    ) -> AnomalyMapDisplay:
        """Compute the anomaly maps of images and draw them.

        Parameters
        ----------
        estimator : TransformalyDetector or OnnxDetector
            A fitted detector.
        X : images
            At most 50 images, of any form that `estimator` takes.
        method : {"discrepancy", "features", "both"} or None, default=None
            Feature spaces of the map, with a `TransformalyDetector`. ``None`` takes those of the
            score, and those of an ONNX file.
        masks : iterable of masks or None, default=None
            True defects of each image, drawn as outlines: an array (height, width) that is 0
            elsewhere, an image, a path of an image, or None.
        titles : iterable of str or None, default=None
            Title of each image. ``None`` is the name of its file, else ``"image 0"``...
        **options : dict
            Options of `plot`: `ax`, `map_range` and `contour`; others raise a TypeError.

        Returns
        -------
        display : AnomalyMapDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` gives no anomaly maps, or images, masks or options are invalid.
        """
        check_call(cls, "from_estimator", options)
        check_map_range(options.get("map_range"))
        if not hasattr(estimator, "anomaly_map"):
            raise ValueError(
                f"{type(estimator).__name__} has no anomaly_map; pass a TransformalyDetector, or "
                "maps to AnomalyMapDisplay.from_predictions"
            )
        source = open_shown(X, estimator)
        _check_number(len(source))
        titles = titles_of_source(titles, source)
        maps, p_values = _maps_and_p_values(estimator, X, method)
        return cls.from_predictions(
            source, maps, masks=masks, titles=titles, p_values=p_values, **options
        )

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        *,
        masks: Iterable[Any] | None = None,
        titles: Iterable[Any] | None = None,
        p_values: Any = None,
        **options: Any,
    ) -> AnomalyMapDisplay:
        """Draw existing anomaly maps.

        Parameters
        ----------
        images : images
            At most 50 images, of any form that `TransformalyDetector.fit` takes.
        maps : ndarray of shape (n_images, height, width) or list of (height, width)
            The anomaly map of each image, in the image's size, from
            `TransformalyDetector.anomaly_map`. Higher = more abnormal.
        masks : iterable of masks or None, default=None
            True defects of each image, drawn as outlines: an array (height, width) that is 0
            elsewhere, an image, a path of an image, or None.
        titles : iterable of str or None, default=None
            Title of each image. ``None`` is the name of its file, else ``"image 0"``...
        p_values : array-like of shape (n_images,) or None, default=None
            P-value of each image, as ``detector.p_values`` gives them.
        **options : dict
            Options of `plot`: `ax`, `map_range` and `contour`; others raise a TypeError.

        Returns
        -------
        display : AnomalyMapDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If images, maps or masks are invalid, or their sizes differ.
        """
        check_call(cls, "from_predictions", options)
        source = open_shown(images)
        _check_number(len(source))
        names = titles_of_source(titles, source)
        if p_values is not None:
            p_values = finite_vector(p_values, "p_values", len(source))
        opened = [as_uint8(source[index]) for index in range(len(source))]
        display = cls(
            opened,
            _checked("maps", [np.asarray(values) for values in maps], source, opened),
            masks=None if masks is None else _open_masks(masks, source, opened),
            titles=names,
            p_values=p_values,
        )
        return display.plot(**options)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        map_range: tuple[float, float] | None = None,
        contour: float | None = None,
    ) -> AnomalyMapDisplay:
        """Draw a row per image: the image, and its map over it.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes whose place the images share. ``None`` makes a new figure.
        map_range : tuple of two floats or None, default=None
            Values of the maps at the ends of the color scale. ``None`` is (2, 8) in all pictures
            of maps, so that those of several calls compare.
        contour : float or None, default=None
            Level of the map at which the display draws a line. ``None`` draws no line.

        Returns
        -------
        self : AnomalyMapDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `map_range` is no range, or `ax` has no place in a grid.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        low, high = check_map_range(map_range)
        n_images = len(self.images)
        heights = [min(image.shape[0] / image.shape[1], _TALLEST) for image in self.images]
        height = 0.3 + sum(0.3 + 2.6 * height for height in heights)
        self.ax_ = own_or_new_axes(ax, (6.8, max(height, _LEAST_HEIGHT)))
        self.figure_ = self.ax_.figure
        self.axes_ = divided_axes(self.ax_, n_images, 2, heights=heights)
        is_cut = max(float(values.max()) for values in self.maps) > high
        titles = titles_of(self.titles, n_images)
        if self.p_values is not None:
            titles = [
                f"{title}\np {value:.2g}"
                for title, value in zip(titles, self.p_values, strict=True)
            ]
        for row, image, values, title in zip(
            self.axes_, self.images, self.maps, titles, strict=True
        ):
            overlay = _draw_row(row, image, values, title, (low, high))
            if contour is not None:
                _outline(row[1], values, contour, "-")
        self._draw_masks()
        self._draw_scale(overlay, is_cut, contour)
        return self

    def _draw_masks(self) -> None:
        if self.masks is None:
            return
        for row, mask in zip(self.axes_, self.masks, strict=True):
            if mask is not None:
                for ax in row:
                    _outline(ax, mask.astype(float), 0.5, "--")
        title = "dashed outline: true defect"
        self.ax_.set_title(title, fontsize=10, pad=TITLE_PAD)

    def _draw_scale(self, overlay: Any, is_cut: bool, contour: float | None) -> None:
        self.colorbar_ = self.figure_.colorbar(
            overlay,
            ax=self.axes_.ravel().tolist(),
            extend="both" if is_cut else "min",
            # Two rows long at most: beside many rows, readers would miss the label.
            shrink=min(1.0, 2 / len(self.images)),
            panchor=False,  # keeps the images centered
        )
        self.colorbar_.set_label(_LABEL, fontsize=9)
        if contour is not None:
            self.colorbar_.ax.axhline(contour, color=_WHITE, linewidth=3)
            self.colorbar_.ax.axhline(contour, color=BLACK, linewidth=1)


def _maps_and_p_values(estimator: Any, X: Any, method: str | None) -> tuple[Any, np.ndarray | None]:
    """Maps of a detector, and p-values if it has some, from one pass if it can."""
    known = CalibrationScores.of(estimator)
    # An ONNX file has the maps of one method.
    options = {} if method is None else {"method": method}
    if known is None:
        return estimator.anomaly_map(X, **options), None
    if hasattr(estimator, "_score_and_map"):
        scores, maps = estimator._score_and_map(X, method)
    else:
        scores, maps = estimator.score_samples(X), estimator.anomaly_map(X, **options)
    return maps, known.p_values(scores)


def _check_number(n_images: int) -> None:
    if n_images > _MAX_ROWS:
        raise ValueError(
            f"{n_images} images need more rows than a figure can show; pass at most {_MAX_ROWS}, "
            "such as the most abnormal ones: X[np.argsort(scores)[:8]]"
        )


def _checked(
    name: str, arrays: list[np.ndarray], source: ImageSource, images: list[np.ndarray]
) -> list[np.ndarray]:
    """Return `arrays` if each is finite and of the size of its image."""
    if len(arrays) != len(images):
        raise ValueError(f"{name} holds {len(arrays)} for {len(images)} images; pass one each")
    for index, (values, image) in enumerate(zip(arrays, images, strict=True)):
        if values.shape != image.shape[:2]:
            raise ValueError(
                f"{name}[{index}] has shape {values.shape}, but {source.name(index)} has "
                f"(height, width) {image.shape[:2]}; pass arrays of the image's size"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name}[{index}] holds NaN or inf; pass finite values")
    return arrays


def _open_masks(
    masks: Iterable[Any], source: ImageSource, images: list[np.ndarray]
) -> list[np.ndarray | None]:
    opened = [None if mask is None else read_mask(mask) for mask in masks]
    if len(opened) != len(images):
        raise ValueError(
            f"masks holds {len(opened)} for {len(images)} images; pass one each, None for none"
        )
    blank = [np.zeros(image.shape[:2], bool) for image in images]
    filled = [empty if mask is None else mask for mask, empty in zip(opened, blank, strict=True)]
    _checked("masks", filled, source, images)
    return opened


def _draw_row(
    row: np.ndarray,
    image: np.ndarray,
    values: np.ndarray,
    title: str,
    ends: tuple[float, float],
) -> Any:
    show_image(row[0], image)
    row[0].set_title(title, fontsize=10)
    show_image(row[1], image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    low, high = ends
    alpha = OPACITY * np.clip((values - low) / (high - low), 0, 1)
    overlay = show_image(row[1], values, cmap=SEQUENTIAL, vmin=low, vmax=high, alpha=alpha)
    row[1].set_title(f"map, up to {values.max():.1f}", fontsize=10)
    return overlay


def _outline(ax: Axes, values: np.ndarray, level: float, style: str) -> None:
    """Draw a line at a level, light on dark, for any background."""
    if values.min() < level < values.max():
        ax.contour(values, [level], colors=BLACK, linewidths=2.5)
        ax.contour(values, [level], colors=_WHITE, linewidths=1.2, linestyles=style)
