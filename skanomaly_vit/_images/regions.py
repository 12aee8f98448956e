"""Regions of interest: the pixels of images that count, one mask for all images or one each."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.masks import read_mask
from skanomaly_vit._images.polygons import read_polygons
from skanomaly_vit._utils.hashing import combine

#: Largest difference of a mask's and an image's ratio of sides.
_SAME_RATIO = 0.01


def read_roi(region: Any, *, ignore: bool = False) -> np.ndarray:
    """Read a region of interest: the pixels that count.

    Parameters
    ----------
    region : str, path-like, PIL.Image.Image or array of shape (height, width)
        An image file or image that is not black where pixels count; a JSON file of LabelMe or COCO
        with polygons or rectangles around them; or an array that is not 0 there.
    ignore : bool, default=False
        Whether the region is, the other way round, what to ignore.

    Returns
    -------
    roi : ndarray of shape (height, width), bool
        True where a pixel counts.

    Raises
    ------
    ValueError
        If the region cannot be read, or no pixel would count.

    See Also
    --------
    MaskedImages : Images with a region each.

    Examples
    --------
    >>> from skanomaly_vit import read_roi
    >>> read_roi([[0, 255], [0, 0]], ignore=True)
    array([[ True, False],
           [ True,  True]])
    """
    is_path = isinstance(region, str | os.PathLike)
    if is_path and os.fsdecode(region).lower().endswith(".json"):
        mask = read_polygons(os.path.expanduser(os.fsdecode(region)))
    else:
        mask = read_mask(os.path.expanduser(os.fsdecode(region)) if is_path else region)
    roi = ~mask if ignore else mask
    if not roi.any():
        named = f"the region {os.fsdecode(region)!r}" if is_path else "the region"
        raise ValueError(
            f"{named} of {roi.shape[0]} x {roi.shape[1]} pixels leaves none that counts; pass a "
            f"mask that is not 0 where pixels count{', or ignore=False' if ignore else ''}"
        )
    return roi


class MaskedImages:
    """Images with a region of interest each, to pass wherever `X` is a set of images.

    Parameters
    ----------
    images : images
        Of any form that `TransformalyDetector.fit` takes, but a DataFrame.
    regions : sequence of length n_images
        The region of each image, of any form that `read_roi` takes; None where all pixels count.

    Raises
    ------
    ValueError
        If there are more or fewer regions than images.

    See Also
    --------
    read_roi : Reads one region.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import MaskedImages
    >>> images = np.zeros((3, 8, 8, 3), np.uint8)
    >>> part = np.zeros((8, 8), bool)
    >>> part[2:6] = True
    >>> len(MaskedImages(images, [part, None, part])[:2])
    2
    """

    def __init__(self, images: Any, regions: Sequence[Any]) -> None:
        if len(images) != len(regions):
            raise ValueError(
                f"there are {len(images)} images and {len(regions)} regions; pass one for each "
                "image, None where all pixels count"
            )
        self.images = images
        self.regions = list(regions)

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def shape(self) -> tuple[int]:
        """Number of images, for scikit-learn."""
        return (len(self.regions),)

    def __getitem__(self, chosen: Any) -> MaskedImages:
        """Some of the images, with their regions: a slice, a mask or indices."""
        places = np.arange(len(self))[chosen]
        if np.ndim(places) == 0:
            raise TypeError("MaskedImages gives several images, not one; pass a slice or a list")
        # Here, since ONNX files are scored without scikit-learn.
        from skanomaly_vit._utils.compat import _safe_indexing

        return MaskedImages(
            _safe_indexing(self.images, places), [self.regions[i] for i in places.tolist()]
        )


@dataclass(frozen=True, eq=False)
class Framing:
    """Which pixels of an image count, and how it fits the input of a network.

    Attributes
    ----------
    roi : ndarray of shape (height, width), bool, or None
        The pixels that count, in all images; scaled to the size of each. None is all of them.
    keep_aspect : bool
        Whether an image of another ratio of sides than the input is padded, not stretched.
    tiles : (int, int), int, "auto" or None
        Tiles of an image, each an input of its own: rows and columns, their side in pixels, or as
        many pixels as the input. None is the whole image as one input.
    """

    roi: Array | None = None
    keep_aspect: bool = False
    tiles: tuple[int, int] | int | str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether all pixels count, and fill one input."""
        return self.tiles is None and self.counts_all

    @property
    def counts_all(self) -> bool:
        """Whether all pixels of an input count."""
        return self.roi is None and not self.keep_aspect

    @functools.cached_property
    def digest(self) -> bytes:
        """Digest of what features depend on."""
        roi = () if self.roi is None else (self.roi.shape, np.packbits(self.roi).tobytes())
        return combine("framing", self.keep_aspect, *roi)


#: All pixels count, and images are stretched.
PLAIN_FRAMING = Framing()


def fit_region(mask: Array, shape: tuple[int, int]) -> Array:
    """A mask at the size of an image, each pixel by the nearest one of the mask.

    Raises
    ------
    ValueError
        If its ratio of sides is another.
    """
    if mask.shape == shape:
        return mask
    (height, width), (rows, columns) = shape, mask.shape
    if abs(rows * width - columns * height) > _SAME_RATIO * rows * width:
        raise ValueError(
            f"{width} x {height} pixels have another ratio of sides than the region of interest, "
            f"{columns} x {rows}"
        )
    vertical = ((np.arange(height) + 0.5) * rows / height).astype(int)
    horizontal = ((np.arange(width) + 0.5) * columns / width).astype(int)
    return mask[np.ix_(vertical, horizontal)]
