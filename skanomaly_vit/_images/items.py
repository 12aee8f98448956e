"""Items: elements of a list of images, checked before they are decoded."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import (
    CLOSED,
    Array,
    Item,
    is_closed,
    is_tensor,
    tensor_to_array,
)
from skanomaly_vit._images.listing import advise_listing, has_image_suffix
from skanomaly_vit._images.unreadable import one_line
from skanomaly_vit._utils.missing import is_missing
from skanomaly_vit.exceptions import UnreadableImage, UnreadableImageError

if TYPE_CHECKING:
    import torch

# Values per step of the range check of floats: 16 MB of float32.
_CHUNK_VALUES = 2**22


def as_item(item: Any, index: int) -> Item:
    """Return one element of a list of images, or raise if it has no form of an image."""
    where = f"sample {index}"
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(item)
    if isinstance(item, np.bytes_):
        raise ValueError(f"{where} is of NumPy's bytes, {bytes(item[:40])!r}; {BYTES_ADVICE}")
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Image.Image):
        if 0 in item.size:
            raise ValueError(f"{where}: PIL image of zero size {item.size}")
        return item
    if isinstance(item, np.ndarray):
        check_unmasked(item, where)
        check_dtype(item.dtype, where)
        check_layout(item.shape, where, "np.moveaxis(image, 0, -1)")
        return item
    hint = "a path, a file's bytes, a PIL image, or an array (h, w), (h, w, 1) or (h, w, 3)"
    if is_tensor(item):
        hint = "one tensor (n, 3, h, w), torch.stack(X), or image.permute(1, 2, 0).numpy()"
    if is_missing(item):
        hint += f". {item!r} is a missing value: leave it out"
    raise ValueError(f"{where} is of unsupported type {type(item).__name__}; pass {hint}")


#: What to pass in place of NumPy's bytes.
BYTES_ADVICE = (
    "if these are paths, pass them as text, [os.fsdecode(path) for path in X]; if they are files' "
    "contents, pass a list of Python's bytes, since NumPy cuts off null bytes at the end"
)


def check_unmasked(array: Any, where: str) -> None:
    """Raise for a masked array in which something is masked: no pixel stands for that."""
    if np.ma.is_masked(array):
        n_masked = int(np.ma.getmaskarray(array).sum())
        raise ValueError(
            f"{where} is a masked array, of which {n_masked} of {array.size} values are masked; "
            "pass the value that shall stand in their place, such as X.filled(0)"
        )


def find_unreadable(items: Any) -> Iterator[UnreadableImageError]:
    """Errors of images that are unreadable for reasons which show without decoding."""
    if isinstance(items, np.ndarray) or is_tensor(items):
        is_float = is_tensor(items) and items.is_floating_point()
        if is_float or (isinstance(items, np.ndarray) and items.dtype.kind == "f"):
            yield from _find_out_of_range(items)
        return
    for index, item in enumerate(items):
        if isinstance(item, str):
            yield from _find_bad_path(item, index)
        elif isinstance(item, bytes):
            yield from _find_bad_bytes(item, index)
        elif isinstance(item, Image.Image) and is_closed(item):
            image = UnreadableImage(index, None, CLOSED)
            yield UnreadableImageError(f"sample {index}: {CLOSED}", [image])
        elif isinstance(item, np.ndarray) and item.dtype.kind == "f":
            yield from _find_out_of_range(item[None], first=index)


def _find_bad_bytes(data: bytes, index: int) -> Iterator[UnreadableImageError]:
    """The error of bytes that are a path, not the contents of a file."""
    if len(data) > _LONGEST_PATH or any(end in data for end in (b"\0", b"\n")):
        return
    path = os.fsdecode(data)
    if path and (has_image_suffix(path) or os.path.exists(path)):
        cause = (
            f"bytes are taken for the contents of a file, and {data!r} looks like a path; pass "
            "os.fsdecode(path)"
        )
        yield UnreadableImageError(
            f"sample {index}: {cause}", [UnreadableImage(index, None, cause)]
        )


_LONGEST_PATH = 4096


def _advise_path(path: str) -> str:
    """Advice in place of the path of no file."""
    if "://" in path:
        return "download the file, and pass its path or its bytes"
    if path.startswith("~"):
        return f"pass os.path.expanduser({path!r})"
    if glob.has_magic(path):
        return f"it looks like a pattern: pass sorted(glob.glob({path!r}, recursive=True))"
    return "pass paths of existing files"


def _find_bad_path(path: str, index: int) -> Iterator[UnreadableImageError]:
    where = f"sample {index}"

    def error_of(message: str, cause: str) -> UnreadableImageError:
        return UnreadableImageError(message, [UnreadableImage(index, path, cause)])

    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: null byte
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        message = f"{where}: {reason}: {path!r}; {_advise_path(path)}"
        bad = error_of(message, one_line(error))
        bad.__cause__ = error
        yield bad
        return
    if stat.S_ISDIR(mode):
        yield error_of(
            f"{where}: {path!r} is a directory; pass its files, such as {advise_listing(path)}",
            "Is a directory",
        )
    elif not stat.S_ISREG(mode):
        yield error_of(f"{where}: {path!r} is not a regular file", "not a regular file")


def check_dtype(dtype: np.dtype[Any], where: str) -> None:
    if dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2):
        return
    if dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {where} is an array of dtype {dtype}")
    if dtype.kind not in "iubO":
        raise ValueError(
            f"{where} is an array of dtype {dtype}, not uint8, uint16 or float; pass arrays of "
            "numbers, paths as text, or a list of files' contents"
        )
    hint = ".astype(np.uint8) if its values are 0 to 255, or floats in [0, 1]"
    if dtype.kind == "b":
        hint = ".astype(np.uint8) * 255"
    raise ValueError(
        f"{where} is an array of dtype {dtype}, not uint8, uint16 or float; pass it {hint}"
    )


def check_layout(shape: tuple[int, ...], where: str, to_channels_last: str) -> None:
    """Raise unless the shape of one image is (h, w), (h, w, 1) or (h, w, 3)."""
    if len(shape) not in (2, 3):
        found = f"{len(shape)} dimension(s); pass images of shape (h, w), (h, w, 1) or (h, w, 3)"
    elif len(shape) == 2 or shape[2] in (1, 3):
        if 0 not in shape:
            return
        found = "zero size"
    elif shape[2] == 4:
        found = (
            "4 channels; composite them over a background or drop the alpha channel "
            "([..., :3]), or pass PIL images, which are composited over white"
        )
    elif shape[0] in (1, 3):
        found = f"the channels first; pass {to_channels_last}"
    else:
        found = f"{shape[2]} channels, where 1 or 3 are expected"
    raise ValueError(f"{where} holds images of shape {shape}: {found}")


def _find_out_of_range(
    X: Array | torch.Tensor, *, first: int = 0
) -> Iterator[UnreadableImageError]:
    """Errors of float images (n, ...) with values outside [0, 1]; X[0] has the index `first`."""
    step = max(1, _CHUNK_VALUES // max(1, int(np.prod(X.shape[1:]))))
    for start in range(0, len(X), step):
        part = X[start : start + step]
        chunk: Any = tensor_to_array(part) if is_tensor(part) else part
        if _is_in_range(chunk):
            continue
        for position, image in enumerate(chunk, first + start):
            if not _is_in_range(image):
                cause = _describe_range(image)
                yield UnreadableImageError(
                    f"sample {position} {cause}", [UnreadableImage(position, None, cause)]
                )


def _is_in_range(values: Array) -> bool:
    with np.errstate(invalid="ignore"):
        # In this form, NaN fails the check.
        return bool(values.min() >= 0 and values.max() <= 1)


def _describe_range(image: Array) -> str:
    """Describe the values of an image that are out of range."""
    if np.isnan(image).any():
        return "contains NaN; every pixel needs a value in [0, 1]"
    if np.isinf(image).any():
        return "contains inf; every pixel needs a value in [0, 1]"
    return (
        f"holds floats from {image.min():.6g} to {image.max():.6g}, outside [0, 1]; pass "
        "X / 255 if white is 255, or np.clip(X, 0, 1) if rounding took them outside"
    )
