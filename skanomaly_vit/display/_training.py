"""`TrainingDisplay`: training and validation losses per epoch and block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit.display._style import (
    BLACK,
    BLUE,
    MARKERS,
    SEQUENTIAL,
    VERMILION,
    block_names_of,
    check_call,
    cycled,
    legend_in_headroom,
    name_blocks,
    own_or_new_axes,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LEGEND_ROWS = 16

_TRAIN, _VALID = "training images", "held-out images"


class TrainingDisplay:
    """Losses per epoch and block, on training images and on held-out images.

    `TrainingDisplay.from_history` draws an existing history, in place of ``from_predictions``.
    After a single epoch, such as that of ridge students, the display draws the losses of the blocks
    side by side. All parameters are stored as attributes.

    Parameters
    ----------
    train_loss : ndarray of shape (n_epochs, n_blocks)
        Loss on the training images; NaN after the training of a student has ended.
    valid_loss : ndarray of shape (n_epochs, n_blocks) or None, default=None
        Loss on the held-out images.
    block_names : list of str or None, default=None
        Name of each block; ``None`` if all tuned blocks have one loss.
    initial_loss : float or None, default=None
        Loss on the held-out images before the first epoch, drawn as epoch 0.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the losses.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skanomaly_vit.BlockDistillation : Students, with a loss per block.
    skanomaly_vit.CompactFeatures : Tuned features, with one loss.

    Examples
    --------
    >>> from skanomaly_vit.display import TrainingDisplay
    >>> history = [
    ...     {"epoch": 1, "train_loss": [0.9, 0.4], "valid_loss": [0.8, 0.5]},
    ...     {"epoch": 2, "train_loss": [0.5, 0.2], "valid_loss": [0.6, 0.4]},
    ... ]
    >>> display = TrainingDisplay.from_history(history)
    >>> display.valid_loss.shape
    (2, 2)
    """

    def __init__(
        self,
        train_loss: np.ndarray,
        *,
        valid_loss: np.ndarray | None = None,
        block_names: list[str] | None = None,
        initial_loss: float | None = None,
    ) -> None:
        self.train_loss = train_loss
        self.valid_loss = valid_loss
        self.block_names = block_names
        self.initial_loss = initial_loss

    @classmethod
    def from_estimator(cls, estimator: Any, **options: Any) -> TrainingDisplay:
        """Draw the training losses of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            A fitted `TransformalyDetector`, `BlockDistillation`, `CompactFeatures` or
            `MeanShiftedFeatures`.
        **options : dict
            Options of `plot`: `ax`; others raise a TypeError.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `estimator` has no history of a training.
        """
        check_call(cls, "from_estimator", options)
        check_is_fitted(estimator)
        trained = getattr(estimator, "distillation_", estimator)
        history = getattr(trained, "history_", None)
        if not history:
            raise ValueError(
                f"{type(estimator).__name__} has no history of a training: it has no history_, "
                "and no students in distillation_. Pass a detector with "
                "feature_spaces='both' or 'discrepancy', a BlockDistillation, CompactFeatures or "
                "MeanShiftedFeatures"
            )
        names = trained.get_feature_names_out() if hasattr(trained, "block_indices_") else None
        initial = getattr(trained, "initial_loss_", math.nan)
        return cls.from_history(
            history,
            block_names=names,
            initial_loss=None if math.isnan(initial) else initial,
            **options,
        )

    @classmethod
    def from_history(
        cls,
        history: Sequence[Mapping[str, Any]],
        *,
        block_names: Iterable[Any] | None = None,
        initial_loss: float | None = None,
        **options: Any,
    ) -> TrainingDisplay:
        """Draw an existing history, such as one saved as JSON.

        Parameters
        ----------
        history : list of dict
            Per epoch ``train_loss`` and, with held-out images, ``valid_loss``: a number, or a list
            of a number per block, as in ``history_``.
        block_names : iterable of str or None, default=None
            Name of each block. ``None`` numbers the blocks, if each has a loss.
        initial_loss : float or None, default=None
            Loss on the held-out images before the first epoch, drawn as epoch 0.
        **options : dict
            Options of `plot`: `ax`; others raise a TypeError.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If there is no epoch, or an epoch lacks its loss.
        """
        check_call(cls, "from_history", options)
        if not history:
            raise ValueError("history is empty; pass the history_ of a fitted estimator")
        train = _losses(history, "train_loss")
        valid = _losses(history, "valid_loss") if "valid_loss" in history[0] else None
        if valid is not None and valid.shape != train.shape:
            raise ValueError(
                f"history has losses of {valid.shape[1]} blocks on held-out images, of "
                f"{train.shape[1]} on training images"
            )
        is_per_block = np.ndim(history[0]["train_loss"]) > 0
        display = cls(
            train,
            valid_loss=valid,
            block_names=block_names_of(block_names, train.shape[1]) if is_per_block else None,
            initial_loss=initial_loss,
        )
        return display.plot(**options)

    def plot(self, ax: Axes | None = None) -> TrainingDisplay:
        """Draw a line per block over the epochs, or a point per block after a single epoch.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. ``None`` makes a new figure.

        Returns
        -------
        self : TrainingDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        self.ax_ = own_or_new_axes(ax, (8, 4.5))
        self.figure_ = self.ax_.figure
        if self.block_names is None:
            self._draw_one_loss()
        elif len(self.train_loss) == 1:
            self._draw_one_epoch(self.block_names)
        else:
            self._draw_blocks(self.block_names)
        return self

    def _draw_one_loss(self) -> None:
        epochs = np.arange(1, len(self.train_loss) + 1)
        self.ax_.plot(epochs, self.train_loss, "--s", color=BLUE, label=_TRAIN)
        if self.valid_loss is not None:
            valid = self.valid_loss[:, 0]
            if self.initial_loss is not None:
                epochs, valid = np.append(0, epochs), np.append(self.initial_loss, valid)
            self.ax_.plot(epochs, valid, "-o", color=VERMILION, label=_VALID)
        self._label_epochs("loss")
        legend_in_headroom(self.ax_, 2)

    def _draw_one_epoch(self, names: list[str]) -> None:
        places = np.arange(len(names))
        self.ax_.plot(places, self.train_loss[0], "s", color=BLUE, markersize=8, label=_TRAIN)
        if self.valid_loss is not None:
            (held_out,) = self.ax_.plot(places, self.valid_loss[0], "o", color=VERMILION)
            # A ring hides no square.
            held_out.set(markersize=9, markerfacecolor="none", markeredgewidth=2, label=_VALID)
        name_blocks(self.ax_, names)
        self._scale()
        self.ax_.set(ylabel="loss after one epoch (mean squared error)")
        legend_in_headroom(self.ax_, 2)

    def _draw_blocks(self, names: list[str]) -> None:
        from matplotlib import colormaps
        from matplotlib.lines import Line2D

        epochs = np.arange(1, len(self.train_loss) + 1)
        # The end of the scale is too light on white paper.
        colors = colormaps[SEQUENTIAL](np.linspace(0, 0.85, len(names)))
        solid, kind = self.train_loss, _TRAIN
        if self.valid_loss is not None:
            solid, kind = self.valid_loss, _VALID
        for index, (name, color) in enumerate(zip(names, colors, strict=True)):
            marker = cycled(MARKERS, index)
            self.ax_.plot(epochs, solid[:, index], color=color, marker=marker, label=name)
            if self.valid_loss is not None:
                self.ax_.plot(epochs, self.train_loss[:, index], "--", color=color, linewidth=1)
        self._label_epochs("loss (mean squared error)")
        self._scale()
        # The last block first: its loss is usually the highest.
        handles = self.ax_.get_legend_handles_labels()[0][::-1]
        handles.append(Line2D([], [], color=BLACK, linestyle="-", label=kind))
        if self.valid_loss is not None:
            handles.append(Line2D([], [], color=BLACK, linestyle="--", label=_TRAIN))
        self.ax_.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            title="block",
            ncols=math.ceil(len(handles) / _LEGEND_ROWS),
        )

    def _label_epochs(self, what: str) -> None:
        from matplotlib.ticker import MaxNLocator

        self.ax_.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_.set(xlabel="epoch", ylabel=what)

    def _scale(self) -> None:
        """Scale losses logarithmically, as their magnitudes differ, if all are above 0."""
        valid = () if self.valid_loss is None else self.valid_loss
        known = np.append(self.train_loss, valid)
        if (known[np.isfinite(known)] > 0).all():
            self.ax_.set_yscale("log")


def _losses(history: Sequence[Mapping[str, Any]], kind: str) -> np.ndarray:
    """Losses of one kind, of shape (n_epochs, n_blocks)."""
    missing = [index for index, record in enumerate(history) if kind not in record]
    if missing:
        raise ValueError(f"history[{missing[0]}] has no {kind!r}; pass records as in history_")
    rows = [np.atleast_1d(np.asarray(record[kind], dtype=np.float64)) for record in history]
    for index, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise ValueError(
                f"history[{index}] has {kind!r} of {len(row)} blocks, history[0] of {len(rows[0])}"
            )
    return np.stack(rows)
