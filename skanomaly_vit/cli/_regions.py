"""Options of how images become inputs: a region of interest, what to ignore, padding, tiles."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._options import EXISTING_FILE

if TYPE_CHECKING:
    import numpy as np

_FORMS = "An image, not black there, or polygons of LabelMe or COCO (.json)"


class _Tiling(click.ParamType):
    name = "tiles"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"([1-9]\d*)(?:[xX]([1-9]\d*))?", value)
        if value == "auto":
            return value
        if found is None:
            self.fail(f"{value!r} is not auto, a number of pixels, or ROWSxCOLUMNS.", param, ctx)
        rows, columns = found.groups()
        return int(rows) if columns is None else (int(rows), int(columns))


def region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --roi, --ignore, --keep-aspect and options of tiles.

    The command gets `roi` for both regions.
    """

    @functools.wraps(command)
    def with_region(
        *arguments: Any, roi: np.ndarray | None, ignore: np.ndarray | None, **options: Any
    ) -> Any:
        return command(*arguments, roi=_both(roi, ignore), **options)

    for option in (
        click.option(
            "--tile-density",
            type=click.Choice(["shared", "position"]),
            help="One density for all places of tiles, or one for each, where parts are aligned.  "
            "[default: shared]",
        ),
        click.option(
            "--tiles",
            type=_Tiling(),
            metavar="TILES",
            help="Cut large images into tiles: ROWSxCOLUMNS, such as 2x3; the side of a square in "
            "pixels; or auto, squares as large as the input of the backbone.",
        ),
        click.option(
            "--keep-aspect",
            is_flag=True,
            default=None,
            help="Pad images to the input of the backbone, in place of stretching them.",
        ),
        click.option(
            "--ignore",
            type=EXISTING_FILE,
            metavar="FILE",
            callback=_read,
            help="The pixels that do not count, such as a serial number, in the same forms.",
        ),
        click.option(
            "--roi",
            type=EXISTING_FILE,
            metavar="FILE",
            callback=_read,
            help=f"The pixels that count, in all images.  {_FORMS}.",
        ),
    ):
        with_region = option(with_region)
    return with_region


def _read(context: click.Context, option: click.Parameter, path: str | None) -> Any:
    if path is None or context.resilient_parsing:
        return None
    from skanomaly_vit import read_roi

    try:
        return read_roi(path, ignore=option.name == "ignore")
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from error


def _both(roi: np.ndarray | None, rest: np.ndarray | None) -> np.ndarray | None:
    """The pixels that count by both."""
    if roi is None or rest is None:
        return rest if roi is None else roi
    if roi.shape != rest.shape:
        (height, width), (rows, columns) = roi.shape, rest.shape
        raise click.UsageError(
            f"--roi has {width} x {height} pixels, and --ignore {columns} x {rows}; draw both on "
            "images of one size."
        )
    if not (roi & rest).any():
        raise click.UsageError("--ignore leaves none of the pixels of --roi.")
    return roi & rest
