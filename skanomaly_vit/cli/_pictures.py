"""Displays as files, drawn without a screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skanomaly_vit._utils.files import replacing


def save_display(draw: Callable[[], Any], path: str) -> None:
    """Write the figure of a display as a PNG, whole or not at all, and forget it.

    Parameters
    ----------
    draw : callable
        Gives the display; its figure is made without a screen.
    path : str
    """
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    figure = draw().figure_
    with replacing(Path(path)) as stream:
        figure.savefig(stream, format="png", dpi=120)
    plt.close(figure)
