"""Opening of images: any accepted ``X``, validated without decoding it."""

from __future__ import annotations

from typing import Any

from skanomaly_vit._images.items import find_unreadable
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.regions import PLAIN_FRAMING, Framing, MaskedImages
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.unreadable import merge
from skanomaly_vit._images.validation import check_form
from skanomaly_vit._utils.composition import find_attribute


def open_images(
    X: Any,
    *,
    image_shape: tuple[int, int, int] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    on_error: str = "raise",
    framing: Framing = PLAIN_FRAMING,
) -> ImageSource:
    """Validate any accepted ``X`` without decoding it.

    Parameters
    ----------
    X : array-like of n images
        - array (n, h, w, 3), (n, h, w, 1) or (n, h, w): uint8, uint16, or float in [0, 1];
        - list, tuple, 1-D array or Series of paths, of files' bytes, of PIL images, or of arrays
          (h, w), (h, w, 1) or (h, w, 3), sizes and kinds mixed;
        - DataFrame or array of one column of any of these;
        - array (n, h * w * c) if ``image_shape`` is given;
        - torch tensor (n, 3, h, w): uint8, or float in [0, 1];
        - `MaskedImages` of any of these.
    image_shape : (h, w, c), default=None
        Shape of the image that each row of a 2-D ``X`` holds; c is 1 or 3.
    max_pixels : int or None, default=2**27
        Files and PIL images of more pixels raise before they are decoded; None is no limit.
    on_error : {"raise", "nan"}, default="raise"
        For unreadable images, now or later: raise an error that names all known ones, or set them
        aside (``source.unreadable``).
    framing : Framing
        Pixels that count in all images, and how images fit the input.

    Returns
    -------
    source : ImageSource
        Refers to ``X`` and copies no pixels.

    Raises
    ------
    ValueError
        If ``X`` is none of these, or ambiguous, or one of the images cannot be read.
    TypeError
        If ``X`` is sparse or an iterator.
    """
    if isinstance(X, ImageSource):
        return X.reopen(max_pixels, on_error, framing)
    regions = None
    if isinstance(X, MaskedImages):
        X, regions = X.images, X.regions
    items = check_form(X, image_shape)
    found = list(find_unreadable(items))
    if found and on_error == "raise":
        raise merge(found)
    return ImageSource(
        items,
        image_shape=image_shape,
        max_pixels=max_pixels,
        skips_unreadable=on_error == "nan",
        unreadable={image.index: image for error in found for image in error.images},
        framing=framing,
        regions=regions,
    )


def reading_options(estimator: Any) -> dict[str, Any]:
    """Options that an estimator, or its first step, passes to `open_images`."""
    return {
        "image_shape": find_attribute(estimator, "image_shape"),
        "max_pixels": find_attribute(estimator, "max_pixels", MAX_PIXELS),
    }
