"""Pasted defects: known outlines on normal images, to evaluate anomaly maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.utils import Bunch, check_random_state

from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pixels import as_uint8, as_unit

#: Width of a defect relative to the shorter side of its image; None is a random one.
Size: TypeAlias = "float | None"

#: Pixels (h, w, 3) float32 in [0, 1], pixels of another image, a size, and a generator -> the
#: altered pixels and their mask (h, w).
Defect = Callable[
    [np.ndarray, np.ndarray, Size, np.random.RandomState], tuple[np.ndarray, np.ndarray]
]


def _scratch(
    pixels: np.ndarray, other: np.ndarray, size: Size, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """A thin bent line, dark or bright."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.4, 6))
    steps = rng.uniform(0.04, 0.1) * side * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.cumsum(steps, axis=0)
    center = _place(height, width, rng)[::-1]
    thickness = rng.uniform(0.008, 0.02) * side
    if size is not None:
        shrunk = size * side / np.ptp(points, axis=0).max()
        points, thickness = shrunk * points, shrunk * thickness
    points += center - points.mean(axis=0)
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).line(list(map(tuple, points)), fill=255, width=max(1, round(thickness)))
    return _shade(pixels, np.asarray(canvas) > 0, rng)


def _stain(
    pixels: np.ndarray, other: np.ndarray, size: Size, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """A blot, darker or brighter than the pixels below."""
    return _shade(pixels, _blob(pixels, size, rng), rng)


def _foreign(
    pixels: np.ndarray, other: np.ndarray, size: Size, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """A piece of another image."""
    mask = _blob(pixels, size, rng)
    rows, columns = np.nonzero(mask)
    top, left = rng.randint(other.shape[0]), rng.randint(other.shape[1])
    altered = pixels.copy()
    altered[mask] = other[(rows + top) % other.shape[0], (columns + left) % other.shape[1]]
    return altered, mask


#: Name -> function that makes the defect.
DEFECTS: dict[str, Defect] = {"scratch": _scratch, "stain": _stain, "foreign": _foreign}


def _place(height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    return rng.uniform(0.2, 0.8, 2) * (height, width)


def _blob(pixels: np.ndarray, size: Size, rng: np.random.RandomState) -> np.ndarray:
    """Mask (h, w) of an ellipse with an uneven rim; without a size, 0.5 to 3 % of the area."""
    height, width = pixels.shape[:2]
    center, angle = _place(height, width, rng), rng.uniform(0, np.pi)
    radius = np.sqrt(rng.uniform(0.005, 0.03) * height * width / np.pi)
    if size is not None:
        radius = size * min(height, width) / 2
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    y, x = np.mgrid[:height, :width] - center[:, None, None]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    rim = gaussian_filter(rng.normal(size=(height, width)), radius / 3 + 0.1)
    rim *= 0.25 / max(float(rim.std()), 1e-9)
    mask = np.hypot(u / stretch, v * stretch) < radius * (1 + rim)
    mask[tuple(center.astype(int))] = True  # never empty
    return mask


def _shade(
    pixels: np.ndarray, mask: np.ndarray, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Pull the masked pixels towards black or white, whichever is farther away."""
    target = 0.0 if pixels[mask].mean() > 0.5 else 1.0
    if rng.uniform() < 0.25:
        target = 1 - target
    weight = rng.uniform(0.4, 0.8) * mask[..., None]
    return (1 - weight) * pixels + weight * target, mask


def paste_defects(
    images: Any,
    *,
    kinds: Sequence[str] = ("scratch", "stain", "foreign"),
    size: float | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Paste one defect on each image, and return its mask.

    It tests anomaly maps where nobody has drawn masks: a map that does not find these defects will
    hardly find real ones. The reverse is not true.

    Parameters
    ----------
    images : images
        Any images that `TransformalyDetector.fit` takes. The function copies them.
    kinds : sequence of {"scratch", "stain", "foreign"}
        Each image gets one of them at random: a thin line, a blot, or a piece of another image (of
        the same one if it is the only one).
    size : float or None, default=None
        Width of each defect in (0, 1], relative to the shorter side of its image: the extent of a
        scratch, the diameter of a circle with the area of a blot or piece; at least a pixel.
        ``None`` draws a random one, of 0.08 to 0.2 of the side of a square image for blots and
        pieces, more for scratches.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same defects every time.

    Returns
    -------
    data : Bunch
        - ``images``: list of ndarray of shape (height, width, 3), uint8.
        - ``masks``: list of ndarray of shape (height, width), bool, True on the defect.
        - ``kinds``: ndarray of shape (n,), the kind of each.

    Raises
    ------
    ValueError
        If a kind is unknown, `size` is out of range, or the images are not as described.

    See Also
    --------
    pixel_auroc : AUROC of a map for these pixels against the others.
    skanomaly_vit.datasets.load_mvtec : Real defects, with masks.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.datasets import paste_defects
    >>> defective = paste_defects(np.zeros((2, 64, 48), np.uint8), random_state=0)
    >>> [mask.shape for mask in defective.masks]
    [(64, 48), (64, 48)]
    """
    _check_kinds(kinds)
    _check_size(size)
    source = open_images(images)
    rng = check_random_state(random_state)
    data = Bunch(images=[], masks=[], kinds=rng.choice(np.array(kinds), len(source)))
    for index, kind in enumerate(data.kinds):
        other = (index + 1 + rng.randint(max(1, len(source) - 1))) % len(source)
        altered, mask = DEFECTS[kind](as_unit(source[index]), as_unit(source[other]), size, rng)
        data.images.append(as_uint8(altered))
        data.masks.append(mask)
    source.warn_of_doubts()
    return data


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in DEFECTS]
    if isinstance(kinds, str) or not len(kinds) or unknown:
        raise ValueError(f"kinds={kinds!r}; pass a list of some of {list(DEFECTS)}")


def _check_size(size: Any) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, Real) or not 0 < float(size) <= 1:
        raise ValueError(f"size={size!r}; pass a share of the shorter side in (0, 1], or None")
