"""Colour of decoded images: embedded profiles, as Pillow's ImageCms applies them, to sRGB."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from skanomaly_vit._images.remarks import remark

# Levels of 255 by which a profile may differ from sRGB and still be taken for it: profiles of sRGB
# differ among themselves by rounding, and pixels that need no change keep their bits.
_ROUNDING = 2

_GAMMA_OF_SRGB = 1 / 2.2

# x and y of white, red, green and blue.
_PRIMARIES_OF_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image) -> Image.Image:
    """An image of mode L, RGB or CMYK as its profile says: L or RGB, in sRGB.

    An image without a profile stays as it is, unless it is CMYK. Where a profile cannot be applied,
    that is remarked.
    """
    profile = image.info.get("icc_profile")
    if profile:
        try:
            return _managed(image, bytes(profile))
        except Exception as error:  # noqa: BLE001 - ImageCms raises several types
            said = " ".join(str(error).split()) or type(error).__name__
            remark(f"the embedded colour profile cannot be applied ({said}); it is left out")
    elif image.mode != "CMYK":
        _remark_gamma(image)
    if image.mode == "CMYK":
        remark(
            "CMYK without a colour profile is converted by a plain formula, and inks look other "
            "in print; convert such images to sRGB with the profile of the printer"
        )
        return image.convert("RGB")
    return image


def is_srgb(image: Image.Image) -> bool:
    """Whether grey values of an image are those of sRGB, as far as its profile says."""
    profile = image.info.get("icc_profile")
    if not profile:
        return True
    try:
        return _transform(bytes(profile), "L") is None
    except Exception:  # noqa: BLE001 - as above
        return False


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    mode = _mode_of(profile)
    if image.mode == "L" and mode == "RGB":
        # Grey values with the profile of the colours that they were made of.
        if _transform(profile, "RGB") is None:
            return image
        image = image.convert("RGB")
    if image.mode != mode:
        raise ValueError(f"a profile of {mode} in an image of {image.mode}")
    transform = _transform(profile, mode)
    return image if transform is None else transform.apply(image)


def _open_profile(profile: bytes) -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


@functools.lru_cache(maxsize=64)
def _mode_of(profile: bytes) -> str:
    space = _open_profile(profile).profile.xcolor_space.strip()
    if space not in _MODES:
        raise ValueError(f"a profile of the colour space {space!r}")
    return _MODES[space]


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """Transform of an image of a mode into sRGB; None if nothing changes."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(_open_profile(profile), srgb, mode, "RGB")
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    plain, managed = (
        np.asarray(each.convert("RGB"), np.int16) for each in (probe, transform.apply(probe.copy()))
    )
    return None if np.abs(plain - managed).max() <= _ROUNDING else transform


def _probe(mode: str) -> Image.Image:
    """Colours from all over the space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)  # (9, 9, 9, 3)
    return Image.fromarray(grid.reshape(27, 27, 3))


def _remark_gamma(image: Image.Image) -> None:
    if image.format != "PNG" or "srgb" in image.info:
        return
    primaries = image.info.get("chromaticity")
    if primaries and np.abs(np.subtract(primaries, _PRIMARIES_OF_SRGB)).max() > 0.01:
        remark("the file asks for other primary colours (cHRM), which are left out: sRGB is read")
    gamma = image.info.get("gamma")
    if not gamma:
        return
    if abs(float(gamma) - _GAMMA_OF_SRGB) > 0.05:
        remark(f"the file asks for a gamma of {float(gamma):.3g}, which is left out: sRGB is read")
