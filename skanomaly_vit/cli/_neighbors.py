"""Normal images of a folder that are nearest to an image, by the features of a detector."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pixels import shrink
from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._terminal import Unreadable, progress_bar

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector

# One image has no neighbor to compare with, and its features no deviation.
_FEWEST = 2

_THUMBNAIL = 240  # pixels

#: Letters of a name above a thumbnail.
_SHOWN = 24


def find_neighbors(
    detector: TransformalyDetector, image: str, folder: str, n: int, unreadable: Unreadable
) -> dict[str, Any]:
    """The n nearest images of a folder, apart from the image itself.

    A distance is the root mean square of the differences of all features in the views of the
    score, in units of their standard deviations in the folder. ``own`` is the distance of a
    neighbor from the image of the folder that is nearest to it.
    """
    found = list_inputs([folder], unreadable)
    paths = [path for path in found if not os.path.samefile(path, image)]
    (target,), _ = _features(detector, [image], unreadable)
    rows, readable = _features(detector, paths, unreadable)
    if len(rows) < _FEWEST:
        raise click.UsageError(
            f"{folder!r} holds {len(rows)} other image(s) that can be read; pass the folder of "
            f"normal images, with {_FEWEST} at the very least."
        )
    scale = rows.std(axis=0)
    scale[scale == 0] = np.inf  # a feature that never varies tells no two images apart
    distances = _distances(rows, target, scale)
    order = np.argsort(distances, kind="stable")[:n]
    return {
        "folder": folder,
        "n_images": len(rows),
        "nearest": [
            {
                "path": readable[i],
                "distance": float(distances[i]),
                "own": float(np.delete(_distances(rows, rows[i], scale), i).min()),
            }
            for i in order
        ],
    }


def _distances(rows: np.ndarray, target: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.sqrt((((rows - target) / scale) ** 2).mean(axis=1))


def _features(
    detector: TransformalyDetector, paths: Sequence[str], unreadable: Unreadable
) -> tuple[np.ndarray, list[str]]:
    """Features of the readable images in the views of the score, side by side; and their paths."""
    source = detector._open_images(list(paths), on_error="nan")
    passes, students = detector._scoring_passes(source)
    views = [view for view in detector.density_ if view != DISCREPANCY] or [DISCREPANCY]
    parts = []
    with progress_bar("looking for neighbors", len(paths), shown=len(paths) > 1) as bar:
        for embedded in passes.stream(np.arange(len(source)), students):
            parts.append(np.concatenate([embedded[view] for view in views], axis=1))
            bar.update(len(parts[-1]))
    for position, missing in source.unreadable.items():
        unreadable(paths[position], missing.cause)
    rows = np.concatenate(parts).astype(np.float64) if parts else np.empty((0, 0))
    return rows, [paths[position] for position in source.readable()]


def describe_neighbors(neighbors: dict[str, Any]) -> Iterator[str]:
    """Lines on the nearest images."""
    from skanomaly_vit._utils.provenance import printable

    yield printable(
        f"Nearest of {neighbors['n_images']} images in {neighbors['folder']} (own: the distance "
        "from its own nearest there):"
    )
    yield f"  {'distance':>9}  {'own':>9}  image"
    for each in neighbors["nearest"]:
        yield f"  {each['distance']:>9.3g}  {each['own']:>9.3g}  {printable(each['path'])}"


def draw_neighbors(row: Any, nearest: Sequence[dict[str, Any]], max_pixels: int | None) -> None:
    """Draw thumbnails with names and distances into a row of a matplotlib grid."""
    places = row.subgridspec(1, len(nearest)).subplots(squeeze=False)[0]
    for ax, each in zip(places, nearest, strict=True):
        pixels = open_images([each["path"]], max_pixels=max_pixels)[0]
        ax.imshow(np.asarray(shrink(pixels, _THUMBNAIL)))
        name = os.path.basename(each["path"])
        name = name if len(name) <= _SHOWN else f"...{name[3 - _SHOWN :]}"
        ax.set_title(f"{name}\ndistance {each['distance']:.3g}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    places[0].set_ylabel("nearest normal images", fontsize=9)
