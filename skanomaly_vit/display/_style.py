"""Style of the displays: axes, legends, and colors for color-blind readers and gray print."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from skanomaly_vit._images.opening import open_images, reading_options
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import check_matplotlib_support

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito (2008), "Color Universal Design". The colors differ in gray print too.
BLUE, VERMILION, SKY, GREEN, PURPLE, BLACK = (
    "#0072B2",
    "#D55E00",
    "#56B4E9",
    "#009E73",
    "#CC79A7",
    "#000000",
)

GROUP_COLORS = (BLUE, VERMILION, GREEN, PURPLE, SKY, BLACK)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")

LINE_STYLES = ("-", "--", "-.", ":")

TITLE_PAD = 10.0  # points between a title and the titles of the images below

_NO_HEIGHT = 1e-3

_LEGEND_ROW = 0.1  # height of a row, as a share of the axes

_CHARACTER = 0.085  # width in inches

_LONGEST_NAME = 24  # characters


def require_matplotlib(caller: str) -> None:
    """Raise an ImportError that says what to install if matplotlib is missing."""
    check_matplotlib_support(caller)


def check_call(display: type[Any], method: str, options: Mapping[str, Any]) -> None:
    """Raise if matplotlib is missing, or `plot` does not take an option, before any work."""
    require_matplotlib(f"{display.__name__}.{method}")
    try:
        signature(display.plot).bind_partial(None, **options)
    except TypeError as error:
        raise TypeError(f"{display.__name__}.plot {error}") from None


def own_or_new_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return `ax`, or the axes of a new figure without overlaps; `figsize` is in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.figure(figsize=figsize, layout="constrained").add_subplot()


def divided_axes(
    ax: Axes, n_rows: int, n_columns: int, *, heights: Sequence[float] | None = None
) -> np.ndarray:
    """Lay a grid of axes into the place of `ax`, which keeps its title above them.

    Parameters
    ----------
    ax : Axes
        Axes with a place in a grid, such as those of ``plt.subplots``.
    n_rows, n_columns : int
    heights : sequence of float of length n_rows, default=None
        Relative heights of the rows.

    Returns
    -------
    axes : ndarray of shape (n_rows, n_columns), dtype object

    Raises
    ------
    ValueError
        If `ax` has no place in a grid.
    """
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "ax has no place in a grid that images could share; pass axes made by plt.subplots or "
            "figure.add_subplot, or leave ax out"
        )
    parts = place.subgridspec(2, 1, height_ratios=[_NO_HEIGHT, 1], hspace=_NO_HEIGHT)
    ax.set_axis_off()
    ax.set_subplotspec(parts[0])
    return parts[1].subgridspec(n_rows, n_columns, height_ratios=heights).subplots(squeeze=False)


def legend_in_headroom(ax: Axes, n_columns: int) -> None:
    """Draw a legend inside the axes, above the data and below a title."""
    n_rows = math.ceil(len(ax.get_legend_handles_labels()[1]) / n_columns)
    axis = ax.yaxis.get_transform()
    bottom, top = axis.transform(np.array(ax.get_ylim()))
    room = _LEGEND_ROW * n_rows * (top - bottom)
    ax.set_ylim(top=float(axis.inverted().transform(np.array([top + room]))[0]))
    ax.legend(loc="upper left", ncols=n_columns, framealpha=1)


def name_blocks(ax: Axes, names: Sequence[str]) -> None:
    """Name the ticks 0, 1, 2... after blocks; long names stand upright."""
    needed = _CHARACTER * sum(len(name) + 1 for name in names)
    ax.set_xticks(np.arange(len(names)), names, rotation=90 if needed > inches(ax)[0] else 0)
    ax.set_xlabel("block")


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def show_image(ax: Axes, image: np.ndarray, **options: Any) -> Any:
    """Draw an image without ticks, in a thin frame."""
    shown = ax.imshow(image, **options)
    ax.set(xticks=[], yticks=[])
    return shown


def open_shown(X: Any, estimator: Any = None) -> ImageSource:
    """Open images of any form that an estimator takes, without decoding them."""
    return open_images(X, **reading_options(estimator))


def finite_vector(values: Any, name: str, n_expected: int | None = None) -> np.ndarray:
    """Convert to finite float64 of shape (n,); raise a ValueError that names the first misfit."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name} has shape {vector.shape}; pass one number per image, (n_images,)")
    if n_expected is not None and len(vector) != n_expected:
        raise ValueError(
            f"{name} holds {len(vector)} values for {n_expected} images; pass one each"
        )
    wrong = np.flatnonzero(~np.isfinite(vector))
    if len(wrong):
        raise ValueError(
            f"{name} holds {vector[wrong[0]]} for sample {wrong[0]}; remove such images"
        )
    return vector


def titles_of(titles: Iterable[Any] | None, n_images: int) -> list[str]:
    """Titles of the images: `titles`, by default their indices in X."""
    if titles is None:
        return [f"image {index}" for index in range(n_images)]
    given = [str(title) for title in titles]
    if len(given) != n_images:
        raise ValueError(f"titles holds {len(given)} titles for {n_images} images; pass one each")
    return given


def titles_of_source(titles: Iterable[Any] | None, source: ImageSource) -> list[str]:
    """Titles of opened images: `titles`, by default the names of their files, or indices."""
    if titles is not None:
        return titles_of(titles, len(source))
    paths = [source.path(index) for index in range(len(source))]
    return [
        f"image {index}" if path is None else _shortened(os.path.basename(path))
        for index, path in enumerate(paths)
    ]


def _shortened(name: str) -> str:
    """A name that fits above a small picture; its end tells files of a series apart."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def block_names_of(names: Iterable[Any] | None, n_blocks: int) -> list[str]:
    """Names of the blocks: `names`, by default their numbers among those with a student."""
    if names is None:
        return [f"{index} of {n_blocks}" for index in range(1, n_blocks + 1)]
    given = [str(name) for name in names]
    if len(given) != n_blocks:
        raise ValueError(
            f"block_names holds {len(given)} names for {n_blocks} blocks; pass one each"
        )
    return given


def known_option(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {list(known)}")


def cycled(styles: Sequence[str], index: int) -> str:
    """Style at an index; the styles repeat."""
    return styles[index % len(styles)]


#: Colormap of matplotlib, from yellow to red. Its brightness falls evenly, for gray print and
#: color-blind readers, and it stands out from a gray image, be that bright or dark.
SEQUENTIAL = "autumn_r"

#: Opacity of the highest value of an anomaly map; lower values show more of the image.
OPACITY = 0.75
