"""Validation of ``X``: its form, and the images in it."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from skanomaly_vit._images.decoding import Array, Item, is_tensor
from skanomaly_vit._images.items import (
    BYTES_ADVICE,
    as_item,
    check_dtype,
    check_layout,
    check_unmasked,
)
from skanomaly_vit._images.listing import advise_listing
from skanomaly_vit._images.unreadable import one_line

if TYPE_CHECKING:
    import torch


Items: TypeAlias = "Sequence[Item] | Array | torch.Tensor"

_ACCEPTED = (
    "a uint8, uint16 or float array (n, h, w, 3), (n, h, w, 1) or (n, h, w), a list of paths, "
    "of files' bytes, of PIL images or of arrays, or a torch tensor (n, 3, h, w)"
)


class _Texts(Sequence[str]):
    """Paths in an array of text, made on demand: as objects they take several times the memory.

    Parameters
    ----------
    array : ndarray of str of shape (n,)
    """

    def __init__(self, array: Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        return str(self._array[index])


def check_form(X: Any, image_shape: tuple[int, int, int] | None) -> Items:
    """Return the images of `X`, or raise if its form is not accepted."""
    _reject_single(X)
    if image_shape is not None:
        return _check_rows(X, image_shape)
    if is_tensor(X):
        _check_tensor(X)
        return X
    if type(X).__module__.partition(".")[0] == "pyarrow":
        X = _from_arrow(X)
    if not isinstance(X, list | tuple):
        X = _as_array(_only_column(X))
        if X.dtype.kind == "S":
            raise ValueError(f"X is an array of NumPy's bytes, dtype {X.dtype}; {BYTES_ADVICE}")
        if X.dtype.kind not in "OUT" or X.ndim > 2:
            _check_array(X)
            return X
        X = _only_axis(X)
        if X.dtype.kind == "U":
            _check_not_empty(len(X), X.shape)
            return _Texts(X)
    _check_not_empty(len(X), (len(X),))
    return [as_item(item, index) for index, item in enumerate(X)]


def _reject_single(X: Any) -> None:
    """Raise if `X` is no collection of images at all."""
    if X is None:
        raise ValueError(f"X is None; pass {_ACCEPTED}")
    check_unmasked(X, "X")
    if isinstance(X, bytes | bytearray):
        raise ValueError(f"X is a single file of {len(X)} bytes; pass a list, [X]")
    if isinstance(X, str | os.PathLike):
        raise ValueError(_single_path_message(os.fsdecode(X)))
    if isinstance(X, Image.Image):
        raise ValueError("X is a single PIL image; pass a list, [image]")
    if hasattr(X, "tocsr") or (is_tensor(X) and str(X.layout) != "torch.strided"):
        raise TypeError(f"X is sparse ({type(X).__name__}); images are dense: pass X.toarray()")
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X is an iterator ({type(X).__name__}), which gives its images only once; pass list(X)"
        )


def _single_path_message(path: str) -> str:
    if os.path.isdir(path):
        return (
            f"X is a single path, the directory {path!r}; pass a list of files, such as "
            f"{advise_listing(path)}"
        )
    if glob.has_magic(path) and not os.path.exists(path):
        return (
            f"X is a single text, {path!r}, which looks like a pattern; pass the files that match "
            f"it, sorted(glob.glob({path!r}, recursive=True))"
        )
    return f"X is a single path, {path!r}; pass a list of paths, [{path!r}]"


def _check_not_empty(n_samples: int, shape: tuple[int, ...]) -> None:
    if n_samples == 0:
        # scikit-learn's words: its common checks look for them.
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required. "
            "Pass at least one image; where X lists the files of a folder or a pattern, none match."
        )


def _only_column(X: Any) -> Any:
    """The only column of a DataFrame (pandas, polars...); anything else as it is."""
    if hasattr(X, "collect"):  # before `columns`, which Polars warns of
        raise ValueError(f"X is lazy ({type(X).__name__}), without rows as yet; pass X.collect()")
    if not hasattr(X, "columns"):
        return X
    columns = list(X.columns)
    _check_one_column(columns, "X[[column]]")
    return X[columns[0]]


def _check_one_column(columns: Sequence[Any], how: str) -> None:
    if len(columns) != 1:
        raise ValueError(
            f"X is a DataFrame of {len(columns)} columns, {list(columns)}, where one column of "
            f"images is expected; pass {how}, or image_shape=(h, w, c) if each row is an image"
        )


def _from_arrow(X: Any) -> Any:
    """Paths or files' contents of an Arrow array or the only column of a table, as a list."""
    if hasattr(X, "column_names") and hasattr(X, "num_rows"):
        _check_one_column(X.column_names, "X.select([column])")
        X = X.column(0)
    if not hasattr(X, "to_pylist"):
        raise ValueError(
            f"X is of unsupported type {type(X).__name__} of Arrow; pass an Array, a ChunkedArray "
            "or a Table, such as X.to_table() or X.read_all()"
        )
    if hasattr(X.type, "shape"):  # fixed_shape_tensor
        return (X.combine_chunks() if hasattr(X, "combine_chunks") else X).to_numpy_ndarray()
    values = X.to_pylist()
    for index, value in enumerate(values):
        if not isinstance(value, str | bytes | None):
            raise ValueError(
                f"X is an Arrow array of type {X.type}, whose sample {index} is of type "
                f"{type(value).__name__}; pass a column of paths or of files' contents"
            )
    return values


def _as_array(X: Any) -> Array:
    """Array-like -> ndarray; a memmap stays on disk."""
    if not hasattr(X, "to_numpy") and not hasattr(X, "__array__"):
        raise ValueError(f"X is of unsupported type {type(X).__name__}; pass {_ACCEPTED}")
    try:
        array = np.asarray(X.to_numpy() if hasattr(X, "to_numpy") else X)
    except Exception as error:
        # Whatever another library raises.
        raise ValueError(
            f"X, of type {type(X).__name__}, cannot be made an array ({one_line(error)}); pass "
            f"{_ACCEPTED}"
        ) from error
    return array


def _only_axis(X: Array) -> Array:
    """(n,) or (n, 1) array of objects or strings -> (n,)."""
    if X.ndim == 1:
        return X
    if X.ndim == 2 and X.shape[1] == 1:
        return X[:, 0]
    raise ValueError(
        f"X is an array of shape {X.shape} and dtype {X.dtype}, where (n,) or (n, 1) is expected; "
        "pass one column of images, or numbers of a numeric dtype: X.astype(np.uint8)"
    )


def _check_array(X: Array) -> None:
    _check_not_empty(len(X) if X.ndim else 1, X.shape)
    check_dtype(X.dtype, "X")
    if X.ndim == 2:
        raise ValueError(
            f"X is a 2-D array of shape {X.shape}; give image_shape=(h, w, c) if each row is an "
            "image, or pass X[None] if X is one grey image"
        )
    if X.ndim == 3 and X.shape[2] in (3, 4):
        raise ValueError(
            f"X of shape {X.shape} looks like a single colour image; pass X[None], or "
            f"X[..., None] if it is {len(X)} grey images of width {X.shape[2]}"
        )
    if X.ndim not in (3, 4):
        raise ValueError(f"X is an array of {X.ndim} dimension(s), {X.shape}; pass {_ACCEPTED}")
    check_layout(X.shape[1:], "X", "np.moveaxis(X, 1, -1)")


def _check_tensor(X: torch.Tensor) -> None:
    shape = tuple(X.shape)
    _check_not_empty(len(X) if X.ndim else 1, shape)
    if str(X.dtype) != "torch.uint8" and not X.dtype.is_floating_point:
        if X.dtype.is_complex:
            raise ValueError(f"Complex data not supported: X is a tensor of dtype {X.dtype}")
        raise ValueError(
            f"X is a tensor of dtype {X.dtype}; pass X.to(torch.uint8) if its values are 0 to "
            "255, or floats in [0, 1]"
        )
    if X.ndim != 4 or shape[1] != 3:
        hint = "pass (n, 3, h, w)"
        if X.ndim == 4 and shape[3] in (1, 3):
            hint = "channels last: pass X.permute(0, 3, 1, 2)"
        elif X.ndim == 4 and shape[1] == 1:
            hint = "grey: pass X.expand(-1, 3, -1, -1)"
        elif X.ndim == 3 and shape[0] == 3:
            hint = "a single image: pass X[None]"
        raise ValueError(f"X is a tensor of shape {shape}; {hint}")
    if 0 in shape:
        raise ValueError(f"X is a tensor of shape {shape}: images of zero size")


def _check_rows(X: Any, image_shape: tuple[int, int, int]) -> Array:
    """2-D X, each row one image."""
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    positive = all(isinstance(length, Integral) and length > 0 for length in shape)
    if len(shape) != 3 or not positive or shape[2] not in (1, 3):
        raise ValueError(
            f"image_shape={image_shape!r} is not (h, w, c) with h and w at least 1 and c 1 or 3"
        )
    if isinstance(X, list | tuple) or is_tensor(X):
        raise ValueError(
            f"image_shape={shape} is for a 2-D array (n, h * w * c), X is of type "
            f"{type(X).__name__}; leave image_shape out, or pass such an array"
        )
    X = _as_array(X)
    if X.ndim != 2:
        raise ValueError(
            f"image_shape={shape} is for a 2-D array (n, h * w * c), X has shape {X.shape}; "
            "leave image_shape out"
        )
    _check_not_empty(len(X), X.shape)
    check_dtype(X.dtype, "X")
    height, width, channels = shape
    if X.shape[1] != height * width * channels:
        raise ValueError(
            f"X has shape {X.shape}, but image_shape={shape} needs rows of {height} * {width} * "
            f"{channels} = {height * width * channels} values"
        )
    return X
