"""Decoding: one image of any form to (h, w, 3) RGB pixels."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from PIL import ExifTags, Image, ImageFile

from skanomaly_vit._images.color import is_srgb, to_srgb
from skanomaly_vit._images.pillow_rules import MAX_PIXELS, check_pixels, open_file, own_rules
from skanomaly_vit._images.remarks import remark
from skanomaly_vit._images.strict_loading import load_strictly

if TYPE_CHECKING:
    import torch


Array: TypeAlias = np.ndarray[Any, Any]

Item: TypeAlias = "str | bytes | Image.Image | Array | torch.Tensor"

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Two threads cannot safely load one lazily opened PIL image, and a list may hold one object twice.
# Striped by id: a single lock would decode a whole list of PIL images serially.
_LOAD_LOCKS = tuple(threading.Lock() for _ in range(64))


def decode_image(item: Item, max_pixels: int | None = MAX_PIXELS) -> Array:
    """Decode one image.

    Parameters
    ----------
    item : str, bytes, PIL.Image.Image, ndarray or torch.Tensor
        A path, the bytes of an image file, a PIL image, an array (h, w), (h, w, 1) or (h, w, 3),
        or a tensor (3, h, w).
    max_pixels : int or None, default=2**27
        Files and PIL images of more pixels raise before they are decoded; None is no limit.

    Returns
    -------
    rgb : ndarray of shape (h, w, 3)
        RGB; uint8 or uint16 over the full range of the type, or float in [0, 1]. May be a
        read-only view of the input.

    Raises
    ------
    Exception
        Any error of Pillow for a file that it cannot read in full.
    """
    if isinstance(item, str | bytes):
        with open_file(item, max_pixels) as image:
            pixels = _decode_pil(image, max_pixels)
            if has_pages(image):
                _remark_pages()
            return pixels
    if isinstance(item, Image.Image):
        with own_rules(max_pixels, in_parts=item.format not in ("PNG", "JPEG", "BMP", None)):
            if _has_shown_pages(item):
                _remark_pages()
            return _decode_pil(item, max_pixels)
    if is_tensor(item):
        return tensor_to_array(item).transpose(1, 2, 0)  # (3, h, w) -> (h, w, 3)
    array: Any = item
    return _gray_to_rgb(array)


def image_size(item: Item, max_pixels: int | None = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the pixels of `decode_image`, if possible without decoding them."""
    if isinstance(item, str | bytes):
        with open_file(item, max_pixels) as image:
            # Other formats show their orientation only after their pixels were read.
            if image.format == "JPEG":
                turned = _orientation(image) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
    height, width = decode_image(item, max_pixels).shape[:2]
    return height, width


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Tell a torch tensor without importing torch: whoever holds a tensor has imported it."""
    tensor_class = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor_class is not None and isinstance(value, tensor_class)


def tensor_to_array(tensor: torch.Tensor) -> Array:
    """Copy a tensor of any device to numpy; low-precision floats (bfloat16) become float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 8:
        tensor = tensor.float()
    return tensor.numpy()


def _decode_pil(image: Image.Image, max_pixels: int | None) -> Array:
    """Upright RGB array of the image's current frame (the first, unless the caller moved on)."""
    scale = _Gray16(image)
    transparent = _transparent_value(image)
    image = load_upright(image, max_pixels)
    if transparent is not None:
        image.info["transparency"] = transparent
    _check_palette(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        if not is_srgb(image):
            remark("the embedded colour profile of 16-bit grey is left out")
        return _gray_to_rgb(scale.decode(image))
    if image.mode == "F":
        return _gray_to_rgb(_decode_float(image))
    if image.has_transparency_data:
        # Pillow knows no La -> RGBA.
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = np.asarray(straight.convert("RGBA"))
        if image.info.get("icc_profile"):
            is_gray = image.mode in ("L", "LA", "La")
            opaque = Image.fromarray(rgba[..., 0] if is_gray else rgba[..., :3])
            opaque.info["icc_profile"] = image.info["icc_profile"]
            managed = np.asarray(to_srgb(opaque).convert("RGB"))
            rgba = np.concatenate([managed, rgba[..., 3:]], axis=2)
        return _over_white(rgba)
    if image.mode == "LAB":
        return np.asarray(image.convert("RGB"))
    if image.mode not in ("L", "RGB", "CMYK"):
        image = _converted(image, "RGB")
    return _gray_to_rgb(np.asarray(to_srgb(image)))


def _transparent_value(image: Image.Image) -> Any:
    """The transparent value of a PNG that is yet to be loaded, as Pillow's pixels have it.

    Pillow leaves it as it is in the file, where a value has as many bits as a sample, and pixels
    have 8. None if there is none, or pixels are as in the file.
    """
    value, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or value is None or not tile:
        return None
    rawmode = tile[0].args
    if rawmode == "RGB;16B":
        remark("of 16-bit colours 8 bits are read, and the transparent one may be several colours")
        return tuple(sample >> 8 for sample in value)
    levels = {"L;2": 85, "L;4": 17}.get(rawmode)
    return None if levels is None else value * levels


def _check_palette(image: Image.Image) -> None:
    """Raise for pixels of a color that the palette lacks; Pillow makes them black."""
    if image.mode not in ("P", "PA") or image.palette is None:
        return
    n_colors = len(image.palette.palette) // len(image.palette.mode)
    indices = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    lacking = used[(used >= n_colors) & (used != image.info.get("transparency"))]
    if len(lacking):
        raise ValueError(
            f"a pixel has color {lacking[0]} of a palette of {n_colors}; write the image again "
            "with a whole palette"
        )


def load_upright(image: Image.Image, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Load an image, and turn it as its EXIF block says; the caller's stays as it was."""
    with _LOAD_LOCKS[id(image) % len(_LOAD_LOCKS)]:
        if is_closed(image):
            raise ValueError(CLOSED)
        check_pixels(image.size, max_pixels)
        # Load first: Pillow then knows EXIF blocks behind the pixels, and has turned TIFF upright.
        load_strictly(image)
        check_pixels(image.size, max_pixels)  # a frame may be larger than the header says
        method = _ORIENTATIONS.get(_orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    return turned


def _converted(image: Image.Image, mode: str) -> Image.Image:
    converted = image.convert(mode)
    converted.format = image.format
    return converted


#: What is wrong with a PIL image that `is_closed`.
CLOSED = (
    "PIL image whose file was closed before its pixels were read; call image.load() inside the "
    "`with`, or pass the path"
)


def is_closed(image: Image.Image) -> bool:
    """Whether an image waits for the pixels of a file that is closed."""
    if not isinstance(image, ImageFile.ImageFile) or getattr(image, "_im", None) is not None:
        return False
    if image.format in ("AVIF", "WEBP"):  # whose plugins have read the file
        return False
    file = getattr(image, "fp", None)
    return file is None or bool(getattr(file, "closed", False))


# Pages of other formats are the same picture, as a preview or for the other eye.
_WITHOUT_PAGES = ("MPO", "PSD", "ICO", "ICNS")

_SUBFILE_TYPE, _REDUCED = 254, 1  # of TIFF

_MOST_PAGES = 1000  # of a pyramid, where a page is a smaller copy


def has_pages(image: Image.Image) -> bool:
    """Whether an open file holds more pictures than its first; leaves it at any of them."""
    try:
        if image.format in _WITHOUT_PAGES or not getattr(image, "is_animated", False):
            return False
        if image.format != "TIFF":
            return True
        for page in range(1, _MOST_PAGES):
            image.seek(page)
            if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & _REDUCED:  # type: ignore[attr-defined]
                return True
    except Exception:  # noqa: BLE001
        # Pillow raises many types for a page that is broken, and EOFError behind the last one.
        return False
    return False


def _has_shown_pages(image: Image.Image) -> bool:
    """As `has_pages`, of a caller's image, which stays at its page; one moved on is as wanted."""
    if image.format in _WITHOUT_PAGES or not isinstance(image, ImageFile.ImageFile):
        return False
    # GIF moves to see its second frame, which would undo changes of pixels in memory.
    if image.format == "GIF" and getattr(image, "_im", None) is not None:
        return bool((getattr(image, "_n_frames", None) or 1) > 1) and image.tell() == 0
    try:
        return bool(getattr(image, "is_animated", False)) and image.tell() == 0
    except Exception:  # noqa: BLE001 - as above
        return False


def _remark_pages() -> None:
    remark(
        "holds several pages or frames, of which the first is read; pass each page as an image of "
        "its own, as PIL.ImageSequence.Iterator gives them, each with .copy()"
    )


def _orientation(image: Image.Image) -> Any:
    """EXIF orientation, 1 (upright) if there is none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001
        # Pillow raises many types for a malformed EXIF block. The pixels are sound, and every
        # viewer shows such a file as it is stored.
        return 1


class _Gray16:
    """Facts that a file states of its 16-bit gray values, asked before they are loaded."""

    def __init__(self, image: Image.Image) -> None:
        tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        # Pillow unpacks 12 bits and does not scale them, and does not invert 16-bit grey.
        self._white = 4095 if tags.get(_BITS_PER_SAMPLE) in (12, (12,)) else 65535
        self._is_inverted = tags.get(_PHOTOMETRIC) == 0
        # Pillow scales PPM, and PNG has 16 bits whatever values there are.
        self._is_known = image.format in ("PNG", "PPM") or image.mode != "I"

    def decode(self, image: Image.Image) -> Array:
        """(h, w) uint16; Pillow's own conversion to RGB would clip at 255."""
        gray = np.asarray(image)
        low, high = int(gray.min()), int(gray.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"image of mode {image.mode!r} with values from {low} to {high}, where "
                "0 to 65535 is expected; rescale it and pass a uint16 or float array"
            )
        if 0 < high <= 255 and not self._is_known:
            raise ValueError(
                f"image of mode 'I' with values from {low} to {high}, which may be of 8 bits, or "
                "of 16 and nearly black; pass np.asarray(image).astype(np.uint8) if 255 is white, "
                ".astype(np.uint16) if 65535 is"
            )
        gray = gray.astype(np.uint16)
        transparent = image.info.get("transparency")
        background = gray == transparent if isinstance(transparent, int) else None
        if self._white != 65535:
            wide = np.minimum(gray, self._white).astype(np.uint32) * 65535
            gray = ((wide + self._white // 2) // self._white).astype(np.uint16)
        if self._is_inverted and image.mode.startswith("I;16"):
            gray = 65535 - gray
        if background is not None:
            gray[background] = 65535
        return gray


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # of TIFF


def _decode_float(image: Image.Image) -> Array:
    """(h, w) float32 of a mode "F" image; the mode defines no range."""
    gray = np.asarray(image)
    # In this form, NaN fails the check.
    if not (gray.min() >= 0 and gray.max() <= 1):
        raise ValueError(
            f"image of mode 'F' with values from {gray.min()} to {gray.max()}, where 0 to 1 is "
            "expected; rescale it, for instance by dividing by 255"
        )
    return gray


def _over_white(rgba: Array) -> Array:
    """Composite (h, w, 4) uint8 over white -> (h, w, 3), rounded to nearest."""
    color = rgba[..., :3].astype(np.uint16)
    alpha = rgba[..., 3:].astype(np.uint16)
    # At most 255 * 255 + 127: fits uint16.
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _gray_to_rgb(pixels: Array) -> Array:
    """(h, w), (h, w, 1) or (h, w, 3), any byte order -> (h, w, 3), native byte order."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
