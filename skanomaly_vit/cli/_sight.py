"""What a backbone can see of images of a size: how many of their pixels make one patch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from skanomaly_vit._backbone.patches import layout_of
from skanomaly_vit._images.tiles import boxes_of
from skanomaly_vit.detector import TransformalyDetector

#: Images whose size is looked up, spread over all.
_N_LOOKED_UP = 100


def describe_sight(detector: TransformalyDetector, paths: Sequence[str]) -> str | None:
    """Say which defects are too small, and which image size would show them.

    None if the network sees the images as large as they are, or does not tell its patches.
    """
    teacher = detector._held_teacher()
    layout, sizes = layout_of(teacher), _sizes(paths)
    if layout is None or not len(sizes):
        return None
    width, height = (int(side) for side in np.median(sizes, axis=0))
    rows, columns = teacher.preprocessing.image_size
    tiles, what = detector._fitted_framing.tiles, "images"
    if tiles is not None:
        (top, left, bottom, right), *_ = boxes_of((height, width), tiles, (rows, columns))
        width, height, what = int(right - left), int(bottom - top), "tiles"
    if height <= rows and width <= columns:
        return None
    patch = (round(width / layout.columns), round(height / layout.rows))
    larger = min(2 * rows, _multiple(max(width, height), rows // layout.rows))
    advice = (
        f"--image-size {larger} sees smaller ones, at {(larger / rows) ** 2:.1f} times the work."
    )
    if tiles is None and min(width, height) >= 2 * max(rows, columns):
        advice += " --tiles 2x2, at 4 times the work, looks at each quarter alone."
    return (
        f"The {what} have about {width} x {height} pixels, and the network sees {columns} x {rows}:"
        f" one of its {layout.columns} x {layout.rows} patches covers {patch[0]} x {patch[1]} "
        f"pixels. It hardly sees a defect of less than half a patch ({max(patch) // 2} pixels). "
        f"{advice}"
    )


def _sizes(paths: Sequence[str]) -> np.ndarray:
    """Width and height of some of the images, (n, 2); without those in formats of ours."""
    found = []
    step = -(-len(paths) // _N_LOOKED_UP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit has warned
        for path in paths[::step]:
            try:
                with Image.open(path) as image:
                    found.append(image.size)
            except OSError:
                continue
    return np.array(found)


def _multiple(side: int, patch: int) -> int:
    """The largest multiple of a patch's side up to a length."""
    return side // patch * patch
