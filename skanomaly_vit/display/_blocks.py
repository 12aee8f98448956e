"""`BlockDiscrepancyDisplay`: the blocks that raise an image's anomaly score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._utils.labels import as_labels, show_labels, sorted_classes
from skanomaly_vit.display._style import (
    BLACK,
    GROUP_COLORS,
    LINE_STYLES,
    MARKERS,
    SEQUENTIAL,
    block_names_of,
    check_call,
    cycled,
    inches,
    known_option,
    legend_in_headroom,
    name_blocks,
    open_shown,
    own_or_new_axes,
    require_matplotlib,
    titles_of,
    titles_of_source,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


KINDS = ("auto", "line", "heatmap")

_MOST_LINES = 6

_MOST_NAMED_ROWS = 40

_ROW = 0.16  # height of the name of a row, in inches

_LABEL = "discrepancy (standard deviations of normal images)"


class BlockDiscrepancyDisplay:
    """Discrepancy of each block, per image or per group, beside that of normal images.

    The discrepancy of a block is the error of its student. The display standardizes it by mean and
    standard deviation on normal images: 0 is usual, higher = more abnormal. Create the display
    with `BlockDiscrepancyDisplay.from_estimator` or `BlockDiscrepancyDisplay.from_predictions`.
    All parameters are stored as attributes.

    Parameters
    ----------
    standardized : ndarray of shape (n_images, n_blocks)
        Discrepancies in standard deviations of normal images from their mean.
    block_names : list of str
        Name of each block, the earliest first.
    groups : list of length n_images or None, default=None
        Group of each image. ``None`` shows single images.
    titles : list of str or None, default=None
        Title of each image. ``None`` is ``"image 0"``, ``"image 1"``...

    Attributes
    ----------
    means_, deviations_ : dict of label to ndarray of shape (n_blocks,)
        Mean and standard deviation of `standardized` in each group; empty without groups.
    ax_ : matplotlib Axes
        Axes with the lines or the heat map.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skanomaly_vit.BlockDistillation : Computes discrepancies.
    AnomalyMapDisplay : Shows the place of the anomaly in the image.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.display import BlockDiscrepancyDisplay
    >>> normal = np.random.default_rng(0).normal(1, 0.1, (20, 3))
    >>> display = BlockDiscrepancyDisplay.from_predictions([[1, 1, 2]], reference=normal)
    >>> display.standardized.argmax()
    np.int64(2)
    """

    def __init__(
        self,
        standardized: np.ndarray,
        *,
        block_names: list[str],
        groups: list[Any] | None = None,
        titles: list[str] | None = None,
    ) -> None:
        self.standardized = standardized
        self.block_names = block_names
        self.groups = groups
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        X_normal: Any = None,
        *,
        groups: Any = None,
        reference_group: Any = None,
        titles: Iterable[Any] | None = None,
        **options: Any,
    ) -> BlockDiscrepancyDisplay:
        """Compute the discrepancies of images and draw them.

        Parameters
        ----------
        estimator : TransformalyDetector or BlockDistillation
            A fitted detector, or fitted students.
        X : images
            Images to show, of any form that `estimator` takes.
        X_normal : images or None, default=None
            Two or more normal images to compare with, preferably not training images of
            `estimator`.
        groups : array-like of shape (n_images,) or None, default=None
            Group of each image; the display draws mean and spread of each group. ``None`` draws
            single images.
        reference_group : label or None, default=None
            The normal group, if `X_normal` is None.
        titles : iterable of str or None, default=None
            Title of each image. ``None`` is the name of its file, else ``"image 0"``...
        **options : dict
            Options of `plot`: `ax` and `kind`; others raise a TypeError.

        Returns
        -------
        display : BlockDiscrepancyDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` has no students, or the arguments name no normal images.
        """
        check_call(cls, "from_estimator", options)
        _check_kind(**options)
        distillation = _distillation_of(estimator)
        source = open_shown(X, distillation)
        titles = titles_of_source(titles, source)
        labels = _checked_groups(groups, len(source))
        if X_normal is None:
            _reference_rows(labels, reference_group)
        elif reference_group is not None:
            raise ValueError("X_normal and reference_group both name normal images; pass one")
        return cls.from_predictions(
            distillation.transform(X),
            reference=None if X_normal is None else distillation.transform(X_normal),
            block_names=distillation.get_feature_names_out(),
            groups=labels,
            reference_group=reference_group,
            titles=titles,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        discrepancies: Any,
        *,
        reference: Any = None,
        block_names: Iterable[Any] | None = None,
        groups: Any = None,
        reference_group: Any = None,
        titles: Iterable[Any] | None = None,
        **options: Any,
    ) -> BlockDiscrepancyDisplay:
        """Draw existing discrepancies.

        Parameters
        ----------
        discrepancies : array-like of shape (n_images, n_blocks)
            Output of `BlockDistillation.transform`, higher = more abnormal.
        reference : array-like of shape (n_normal, n_blocks) or None, default=None
            Discrepancies of two or more normal images, for the standardization.
        block_names : iterable of str or None, default=None
            Name of each block. ``None`` is ``"1 of 3"``, ``"2 of 3"``...
        groups : array-like of shape (n_images,) or None, default=None
            Group of each image; the display draws mean and spread of each group. ``None`` draws
            single images.
        reference_group : label or None, default=None
            The normal group, if `reference` is None.
        titles : iterable of str or None, default=None
            Title of each image. ``None`` is the name of its file, else ``"image 0"``...
        **options : dict
            Options of `plot`: `ax` and `kind`; others raise a TypeError.

        Returns
        -------
        display : BlockDiscrepancyDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If the shapes of the arrays differ, the arguments name no normal images, or all normal
            images have the same discrepancy.
        """
        check_call(cls, "from_predictions", options)
        values = _as_table(discrepancies, "discrepancies")
        labels = _checked_groups(groups, len(values))
        if reference is None:
            normal = values[_reference_rows(labels, reference_group)]
        elif reference_group is not None:
            raise ValueError("reference and reference_group both name normal images; pass one")
        else:
            normal = _as_table(reference, "reference")
        display = cls(
            _standardize(values, normal),
            block_names=block_names_of(block_names, values.shape[1]),
            groups=labels,
            titles=titles_of(titles, len(values)),
        )
        return display.plot(**options)

    def plot(self, ax: Axes | None = None, *, kind: str = "auto") -> BlockDiscrepancyDisplay:
        """Draw a line, or a row of a heat map, for each image or group.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. ``None`` makes a new figure.
        kind : {"auto", "line", "heatmap"}, default="auto"
            A line for each image or group, or a row of a heat map. ``"auto"`` draws up to six
            lines.

        Returns
        -------
        self : BlockDiscrepancyDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `kind` is unknown.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        _check_kind(kind=kind)
        rows, spreads, names = self._rows()
        if kind == "auto":
            kind = "line" if len(rows) <= _MOST_LINES else "heatmap"
        if kind == "line":
            self.ax_ = own_or_new_axes(ax, (8, 4.5))
            self._draw_lines(rows, spreads, names)
        else:
            height = 1.6 + 0.22 * min(len(rows), _MOST_NAMED_ROWS)
            self.ax_ = own_or_new_axes(ax, (8, max(3.0, height)))
            self._draw_heatmap(rows, names)
        self.figure_ = self.ax_.figure
        return self

    def _rows(self) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """Rows of values, their spread if the rows are means, and their names."""
        self.means_: dict[Any, np.ndarray] = {}
        self.deviations_: dict[Any, np.ndarray] = {}
        if self.groups is None:
            return self.standardized, None, titles_of(self.titles, len(self.standardized))
        names = []
        for label in sorted_classes(self.groups):
            members = self.standardized[[group == label for group in self.groups]]
            self.means_[label], self.deviations_[label] = members.mean(axis=0), members.std(axis=0)
            names.append(f"{label} ({len(members)})")
        return np.stack([*self.means_.values()]), np.stack([*self.deviations_.values()]), names

    def _draw_lines(self, rows: np.ndarray, spreads: np.ndarray | None, names: list[str]) -> None:
        self.ax_.axhspan(-1, 1, color=BLACK, alpha=0.12, linewidth=0, label="normal images, ± 1")
        places = np.arange(rows.shape[1])
        for index, (row, name) in enumerate(zip(rows, names, strict=True)):
            # Side by side, so that no error bar hides another.
            beside = 0.08 * (index - (len(rows) - 1) / 2) if spreads is not None else 0.0
            self.ax_.errorbar(
                places + beside,
                row,
                yerr=None if spreads is None else spreads[index],
                color=cycled(GROUP_COLORS, index),
                marker=cycled(MARKERS, index),
                linestyle=cycled(LINE_STYLES, index),
                capsize=3,
                label=name,
            )
        name_blocks(self.ax_, self.block_names)
        spread = "" if spreads is None else "\nmean and standard deviation of each group"
        self.ax_.set(ylabel=f"{_LABEL.replace(' (', chr(10) + '(')}{spread}")
        legend_in_headroom(self.ax_, 3)

    def _draw_heatmap(self, rows: np.ndarray, names: list[str]) -> None:
        drawn = self.ax_.imshow(
            rows, cmap=SEQUENTIAL, vmin=0, vmax=max(rows.max(), 1.0), aspect="auto"
        )
        name_blocks(self.ax_, self.block_names)
        if len(names) * _ROW <= inches(self.ax_)[1]:
            self.ax_.set_yticks(np.arange(len(names)), names)
        else:
            self.ax_.set(ylabel="image" if self.groups is None else "group")
        label = _LABEL if self.groups is None else f"mean {_LABEL}"
        self.ax_.figure.colorbar(drawn, ax=self.ax_, label=label, extend="min")


def _check_kind(*, kind: str = "auto", **_: Any) -> None:
    known_option("kind", kind, KINDS)


def _distillation_of(estimator: Any) -> Any:
    """The fitted students: those of a detector, or the estimator itself."""
    check_is_fitted(estimator)
    distillation = getattr(estimator, "distillation_", estimator)
    if distillation is None:
        raise ValueError(
            f"{type(estimator).__name__} has no students: it was fitted with "
            "feature_spaces='pretrained'; fit with feature_spaces='both' or 'discrepancy'"
        )
    if not hasattr(distillation, "block_indices_"):
        raise ValueError(
            f"{type(estimator).__name__} has no students; pass a TransformalyDetector or a "
            "BlockDistillation"
        )
    return distillation


def _as_table(values: Any, name: str) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} has shape {table.shape}; pass (n_images, n_blocks)")
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise ValueError(f"{name} holds NaN or inf for sample {wrong[0]}; remove the sample")
    return table


def _checked_groups(groups: Any, n_images: int) -> list[Any] | None:
    if groups is None:
        return None
    labels = as_labels(groups, "groups")
    if len(labels) != n_images:
        raise ValueError(f"groups holds {len(labels)} labels for {n_images} images; pass one each")
    return labels


def _reference_rows(groups: list[Any] | None, reference_group: Any) -> np.ndarray:
    """Mask of the images of the normal group."""
    if groups is None or reference_group is None:
        raise ValueError(
            "the arguments name no normal images; pass normal images (X_normal), their "
            "discrepancies (reference), or groups and reference_group"
        )
    rows = np.array([group == reference_group for group in groups])
    if not rows.any():
        raise ValueError(
            f"reference_group={reference_group!r} is not among the groups {show_labels(groups)}"
        )
    return rows


def _standardize(values: np.ndarray, normal: np.ndarray) -> np.ndarray:
    if normal.shape[1] != values.shape[1]:
        raise ValueError(
            f"reference has {normal.shape[1]} blocks, discrepancies have {values.shape[1]}; "
            "compute both with the same students"
        )
    spread = normal.std(axis=0)
    if not spread.all():
        raise ValueError(
            f"the {len(normal)} normal images all have the same discrepancy in block number "
            f"{np.flatnonzero(spread == 0)[0] + 1}; pass two or more that differ"
        )
    return (values - normal.mean(axis=0)) / spread
