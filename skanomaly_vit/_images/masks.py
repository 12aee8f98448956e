"""Masks of defects: which pixels of a drawing count. No photographs: no pixel is laid on white."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import (
    Array,
    has_pages,
    is_tensor,
    load_upright,
    tensor_to_array,
)
from skanomaly_vit._images.items import check_unmasked
from skanomaly_vit._images.pillow_rules import MAX_PIXELS, open_file, own_rules
from skanomaly_vit._images.unreadable import one_line
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import AmbiguousImageWarning

#: What of a mask is a defect: "auto", "nonzero", "bright", or values.
Defect: TypeAlias = "str | int | Sequence[int]"

_WORDS = ("auto", "nonzero", "bright")

# Formats whose pixels differ from those that were drawn.
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")

# So few values are no soft edges, but labels or shades that mean something.
_FEW = 8

_ADVICE = (
    "pass defect='nonzero', defect='bright' (at least half of white), the values of defects, such "
    "as defect=[1, 2], or a mask of bool"
)


def read_mask(mask: Any, *, defect: Defect = "auto") -> np.ndarray:
    """Read which pixels of a mask are defective.

    A mask is a drawing, not a photograph: transparent pixels are normal, and the function leaves
    out colour profiles.

    Parameters
    ----------
    mask : str, path-like, bytes, PIL.Image.Image, array or tensor
        An image file, its contents, or pixels of shape (height, width) or (height, width, 1, 3 or
        4).
    defect : {"auto", "nonzero", "bright"}, int or list of int, default="auto"
        Which pixels are defective. ``"nonzero"``: those that are not 0, or black. ``"bright"``:
        those of at least half of white. Integers: those of these values, which in a palette image
        are the indices. ``"auto"``: those that are not 0, if no pixel is doubtful; where edges are
        soft, as in JPEG files, those of at least half of white, with a warning.

    Returns
    -------
    is_defect : ndarray of shape (height, width), bool
        True where the mask marks a defect.

    Raises
    ------
    ValueError
        If `defect` is not as described, the mask cannot be read, or ``"auto"`` cannot tell.

    Warns
    -----
    AmbiguousImageWarning
        If pixels lie between 0 and half of white, and ``"auto"`` takes them for normal.

    See Also
    --------
    skanomaly_vit.evaluation.pixel_auroc : AUROC of a map for the pixels of masks.

    Examples
    --------
    >>> from skanomaly_vit.datasets import read_mask
    >>> read_mask([[0, 255], [0, 0]])
    array([[False,  True],
           [False, False]])
    >>> read_mask([[1, 2], [0, 3]], defect=[2, 3])
    array([[False,  True],
           [False,  True]])
    """
    _check_defect(defect)
    if isinstance(mask, str | os.PathLike | bytes):
        file = mask if isinstance(mask, bytes) else os.fsdecode(mask)
        where = "the mask" if isinstance(mask, bytes) else f"the mask {file!r}"
        try:
            with open_file(file, MAX_PIXELS) as image:
                found = _read_pil(image, defect, where)
                several = has_pages(image)
        except _DoubtfulMaskError as doubt:
            raise ValueError(str(doubt)) from None
        except Exception as error:  # as of other images
            raise ValueError(f"{where} cannot be read: {one_line(error)}") from error
        if several:
            raise ValueError(
                f"{where} holds several pages or frames; pass the one that is meant, as PIL image"
            )
        return found
    try:
        if isinstance(mask, Image.Image):
            with own_rules(MAX_PIXELS, in_parts=True):
                return _read_pil(mask, defect, "the mask, a PIL image,")
        return _read_array(mask, defect, "the mask, an array,")
    except _DoubtfulMaskError as doubt:
        raise ValueError(str(doubt)) from None


class _DoubtfulMaskError(Exception):
    """A mask that can be read, in more than one way."""


def _check_defect(defect: Any) -> None:
    if isinstance(defect, str) and defect in _WORDS:
        return
    values = [defect] if isinstance(defect, Integral) else defect
    is_list = isinstance(values, list | tuple | np.ndarray) and len(values) > 0
    if not is_list or any(isinstance(v, bool) or not isinstance(v, Integral) for v in values):
        raise ValueError(
            f"defect={defect!r} is not one of {_WORDS}, an integer or a list of integers"
        )


def _read_pil(image: Image.Image, defect: Defect, where: str) -> Array:
    is_inverted = False
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        is_inverted = tags.get(262) == 0
    lossy = image.format in _LOSSY
    image = load_upright(image)
    if image.mode == "P" or image.mode == "PA":
        return _read_palette(image, defect, where)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if is_inverted and image.mode.startswith("I;16"):
            values = np.iinfo(np.uint16).max - values
        return _read_values(values, defect, where, lossy=lossy)
    if image.mode == "1":
        return _read_values(np.asarray(image), defect, where)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        return _read_colours(np.asarray(straight.convert("RGBA")), defect, where, lossy=lossy)
    if image.mode == "L":
        return _read_values(np.asarray(image), defect, where, lossy=lossy)
    return _read_colours(np.asarray(image.convert("RGB")), defect, where, lossy=lossy)


def _read_palette(image: Image.Image, defect: Defect, where: str) -> Array:
    """A palette image: its indices and its colours may say different things."""
    indices = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    if indices.ndim == 3:
        indices = indices[..., 0]
    if not isinstance(defect, str):
        return np.isin(indices, np.atleast_1d(defect))
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] < 255).any():
        return _read_colours(rgba, defect, where)
    is_grey = bool((rgba[..., :1] == rgba[..., :3]).all())
    if is_grey or defect == "bright":
        return _read_values(rgba[..., :3].max(axis=2), defect, where)
    by_index, by_colour = indices != 0, rgba[..., :3].any(axis=2)
    if defect == "nonzero":
        return by_index
    if not np.array_equal(by_index, by_colour):
        raise _DoubtfulMaskError(
            f"{where} has a palette of which the index 0 is not black, or another index is, so "
            f"that either may be the normal pixels; pass the indices of defects, such as "
            f"defect={np.unique(indices)[1:4].tolist()}"
        )
    return by_index


def _read_array(mask: Any, defect: Defect, where: str) -> Array:
    check_unmasked(mask, where.rstrip(","))
    values = tensor_to_array(mask) if is_tensor(mask) else np.asarray(mask)
    if values.dtype.kind not in "biuf":
        raise _DoubtfulMaskError(
            f"{where} has the dtype {values.dtype}; pass numbers or bool, or the path of an image"
        )
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8:
        return _read_colours(values, defect, where)
    if values.ndim != 2:
        raise _DoubtfulMaskError(
            f"{where} has the shape {values.shape}; pass (height, width), or colours of uint8, "
            "(height, width, 3)"
        )
    return _read_values(values, defect, where)


def _read_colours(pixels: Array, defect: Defect, where: str, *, lossy: bool = False) -> Array:
    """Colours (height, width, 3 or 4), uint8: black and transparent pixels are normal."""
    colours = pixels[..., :3]
    is_grey = bool((colours[..., :1] == colours).all())
    if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any():
        alpha = pixels[..., 3]
        opaque = _read_values(alpha, "bright" if isinstance(defect, int) else "auto", where)
        drawn = colours[opaque]
        if not isinstance(defect, str):
            _require_grey(is_grey or not opaque.any(), where)
            return opaque & np.isin(colours[..., 0], np.atleast_1d(defect))
        # Of one colour is what was drawn, black too; among several, black is the ground.
        if len(drawn) == 0 or (drawn == drawn[0]).all() or drawn.any(axis=1).all():
            return opaque
        return opaque & colours.any(axis=2)
    if is_grey:
        return _read_values(colours[..., 0], defect, where, lossy=lossy)
    if not isinstance(defect, str):
        _require_grey(False, where)
    brightest = colours.max(axis=2)
    if defect == "auto" and (brightest > 0).all():
        raise _DoubtfulMaskError(
            f"{where} is coloured, and no pixel is black, so that the normal colour is unknown; "
            "pass a mask of bool, such as (pixels != normal_colour).any(axis=2)"
        )
    return _read_values(brightest, defect, where, lossy=lossy)


def _require_grey(is_grey: bool, where: str) -> None:
    if not is_grey:
        raise _DoubtfulMaskError(
            f"{where} is coloured, and values are for grey and palette images; pass "
            "defect='nonzero', or a mask of bool"
        )


def _read_values(values: Array, defect: Defect, where: str, *, lossy: bool = False) -> Array:
    """Values (height, width) of any type."""
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise _DoubtfulMaskError(
            f"{where} holds values below 0, or NaN or inf; pass 0 for normal pixels, or a mask of "
            "bool"
        )
    if not isinstance(defect, str):
        return np.isin(values, np.atleast_1d(defect))
    marked = values > 0
    bright = values >= _white_of(values) / 2
    if defect == "nonzero":
        return marked
    if defect == "bright" or np.array_equal(marked, bright):
        return bright
    return _settle(values, marked, bright, where, lossy=lossy)


def _settle(values: Array, marked: Array, bright: Array, where: str, *, lossy: bool) -> Array:
    """Pixels of a mask of which some lie between 0 and half of white."""
    distinct = np.unique(values[marked])
    has_zero = not marked.all()
    if not has_zero and len(distinct) > 1 and not (lossy and bright.any()):
        raise _DoubtfulMaskError(
            f"{where} holds the values {_show(distinct)} and no 0, so that it is unknown which are "
            f"normal; {_ADVICE}"
        )
    if len(distinct) == 1 and not lossy:
        return marked
    if not bright.any():
        if lossy:
            if values.max() < 16:  # the noise of a black image
                return _warned(bright, marked, where)
            raise _DoubtfulMaskError(
                f"{where} is of a format with loss and holds no value of half of white, but "
                f"{_show(distinct)}, which may be labels or noise; save it as PNG, or {_ADVICE}"
            )
        if values.dtype.kind != "f":
            return marked  # labels
    if len(distinct) <= _FEW and not lossy:
        raise _DoubtfulMaskError(
            f"{where} holds the values {_show(distinct)} beside 0, which may be labels or shades; "
            f"{_ADVICE}"
        )
    return _warned(bright, marked, where)


def _warned(bright: Array, marked: Array, where: str) -> Array:
    between = int((marked & ~bright).sum())
    warn_user(
        AmbiguousImageWarning(
            f"{where} holds {between} of {marked.size} pixels between 0 and half of white, as "
            "JPEG and soft edges make them; they count as normal. Pass defect='bright' if that is "
            "right, defect='nonzero' if they are defects"
        ),
    )
    return bright


def _white_of(values: Array) -> float:
    """White: of the type of small integers, otherwise of the range that the values are in."""
    brightest = float(values.max(initial=0))
    if values.dtype == np.uint8:
        return 255.0
    if values.dtype == np.uint16:
        return 65535.0 if brightest > 255 else 255.0
    return next((white for white in (1.0, 255.0, 65535.0) if brightest <= white), brightest)


def _show(distinct: Array) -> str:
    shown = ", ".join(f"{value:.6g}" for value in distinct[:_FEW].tolist())
    return shown + (", ..." if len(distinct) > _FEW else "")
