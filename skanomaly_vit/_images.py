"""Any accepted ``X`` -> validated, lazy images -> batches of normalised tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import joblib
import numpy as np
import torch
from PIL import Image

from skanomaly_vit._decode import (
    Array,
    Item,
    check_dtype,
    check_item,
    check_layout,
    check_range,
    decode_image,
    image_size,
)
from skanomaly_vit._digests import digest_image

Items: TypeAlias = Sequence[Item] | Array | torch.Tensor

_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
_ACCEPTED = (
    "a uint8, uint16 or float array (n, h, w, 3), (n, h, w, 1) or (n, h, w), a list of paths, "
    "of PIL images or of arrays, or a torch tensor (n, 3, h, w)"
)


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its input.

    Parameters
    ----------
    image_size : (int, int)
        Height and width in pixels.
    mean, std : (float, float, float)
        Of the red, green and blue channel, on a scale where white is 1.
    interpolation : {"bicubic", "bilinear", "nearest"}, default="bicubic"
        How images of another size are resized.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation={self.interpolation!r} is not one of {_INTERPOLATIONS}"
            )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(
                f"image_size={self.image_size!r} is not a (height, width) of at least (1, 1)"
            )


class ImageSource:
    """Validated, lazy view of any accepted ``X``.

    Made by :func:`open_images`. Holds references (paths, arrays, PIL images) and decodes an
    image each time it is asked for it.
    """

    def __init__(
        self,
        items: Items,
        *,
        index: Array | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self._items = items
        # Positions in the X that the user passed, so that errors after `take` name those.
        self._index = np.arange(len(items)) if index is None else index
        self._image_shape = image_shape

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Array:
        """One decoded image (h, w, 3), RGB: uint8, uint16 or float in [0, 1]."""
        return _named(decode_image, *self._entry(index))

    def take(self, indices: Any) -> ImageSource:
        """Lazy subset.

        Parameters
        ----------
        indices : array-like of int or bool
            Positions in this source, or a mask over it.

        Returns
        -------
        subset : ImageSource
            Its errors name the samples by their place in the original ``X``.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.intp)  # numpy makes an empty list float64
        return ImageSource(self._items, index=self._index[chosen], image_shape=self._image_shape)

    def batches(
        self, preprocessing: Preprocessing, *, batch_size: int, n_jobs: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Decode, resize and normalise, one batch at a time, in order.

        Parameters
        ----------
        preprocessing : Preprocessing
            Size, mean, standard deviation and interpolation.
        batch_size : int
            Images per batch; the last batch may hold fewer.
        n_jobs : int, default=None
            Threads that decode and resize. The result does not depend on it.

        Yields
        ------
        batch : torch.Tensor of shape (b, 3, height, width), float32
            ``(x - mean) / std`` with x in [0, 1].

        Raises
        ------
        ValueError
            If an image of the batch cannot be decoded.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        # A generator that binds no batch to a name: the last one can go while the next is made.
        return (
            self._batch(range(start, min(start + batch_size, len(self))), preprocessing, n_jobs)
            for start in range(0, len(self), batch_size)
        )

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image; a ValueError if it cannot be read."""
        return _named(image_size, *self._entry(position))

    def name(self, position: int) -> str:
        """What messages call an image: its index in the original ``X``, and its path."""
        return _name(*self._entry(position))

    def path(self, position: int) -> str | None:
        """Path of an image; None if it was not given as one."""
        item, _ = self._entry(position)
        return item if isinstance(item, str) else None

    def digest(self, position: int) -> bytes:
        """Digest of an image's content, 32 bytes; a ValueError if it cannot be read."""
        item, index = self._entry(position)
        try:
            return digest_image(item)
        except Exception as error:  # whatever Pillow raises
            raise ValueError(
                f"{_name(item, index)}: the image cannot be read: {type(error).__name__}: {error}"
            ) from error

    def _batch(
        self, positions: range, preprocessing: Preprocessing, n_jobs: int | None
    ) -> torch.Tensor:
        jobs = ((*self._entry(position), preprocessing) for position in positions)
        # Each image is resized alone, even those of one array: resizing them together gives the
        # same bits but saves only 0.1 ms an image, next to nothing beside the ViT.
        if n_jobs is None or n_jobs == 1:
            results = [_try_load(*job) for job in jobs]
        else:
            parallel = joblib.Parallel(n_jobs=n_jobs, prefer="threads")
            results = parallel(joblib.delayed(_try_load)(*job) for job in jobs)
        images = [_or_raise(result) for result in results]
        batch = torch.stack(images)  # [B, 3, H, W]
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        return batch.sub_(mean).div_(std)

    def _entry(self, position: int) -> tuple[Item, int]:
        """The undecoded image at a position of this source, and its index in the original X."""
        index = int(self._index[position])
        item = self._items[index]
        if self._image_shape is not None:
            # Row by row: reshaping all of a Fortran-ordered X would copy it.
            item = item.reshape(self._image_shape)  # type: ignore[union-attr]
        return item, index


def open_images(X: Any, *, image_shape: tuple[int, int, int] | None = None) -> ImageSource:
    """Validate any accepted ``X`` without decoding anything.

    Parameters
    ----------
    X : array-like of n images
        - array (n, h, w, 3), (n, h, w, 1) or (n, h, w): uint8, uint16, or float in [0, 1];
        - list, tuple, 1-D array or Series of paths, of PIL images, or of arrays (h, w),
          (h, w, 1) or (h, w, 3), sizes and kinds mixed;
        - DataFrame or array of one column of any of these;
        - array (n, h * w * c) if ``image_shape`` is given;
        - torch tensor (n, 3, h, w): uint8, or float in [0, 1].
    image_shape : (h, w, c), default=None
        Shape of the image that each row of a 2-D ``X`` holds; c is 1 or 3.

    Returns
    -------
    source : ImageSource
        Refers to ``X`` and copies no pixels.

    Raises
    ------
    ValueError
        If ``X`` is none of these, or ambiguous.
    TypeError
        If ``X`` is sparse or an iterator.
    """
    if isinstance(X, ImageSource):
        return X
    _reject_single(X)
    if image_shape is not None:
        return _open_rows(X, image_shape)
    if isinstance(X, torch.Tensor):
        _check_tensor(X)
        return ImageSource(X)
    if not isinstance(X, list | tuple):
        X = _as_array(_only_column(X))
        if X.dtype.kind not in "OUT" or X.ndim > 2:
            _check_array(X)
            return ImageSource(X)
        X = _only_axis(X)
    _check_not_empty(len(X), (len(X),))
    return ImageSource([check_item(item, index) for index, item in enumerate(X)])


# One image


def _named(function: Callable[[Item], Any], item: Item, index: int) -> Any:
    """What a function makes of an image, with an error that names the sample."""
    try:
        return function(item)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError...
        raise ValueError(
            f"{_name(item, index)}: the image cannot be decoded: {type(error).__name__}: {error}"
        ) from error


def _name(item: Item, index: int) -> str:
    return f"sample {index} ({item!r})" if isinstance(item, str) else f"sample {index}"


def _try_load(item: Item, index: int, preprocessing: Preprocessing) -> torch.Tensor | ValueError:
    """`_load`, but return the error: raised through joblib, its cause would be replaced."""
    try:
        return _load(item, index, preprocessing)
    except ValueError as error:
        return error


def _or_raise(result: torch.Tensor | ValueError) -> torch.Tensor:
    if isinstance(result, ValueError):
        raise result
    return result


def _load(item: Item, index: int, preprocessing: Preprocessing) -> torch.Tensor:
    """Decode and resize one image -> (3, height, width) float32 in [0, 1]."""
    pixels = _named(decode_image, item, index)  # (h, w, 3)
    # astype copies, so that the in-place work below never reaches the user's pixels; converting
    # before the transposing copy, not in it, is four times faster for large images.
    planes = np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))
    image = torch.from_numpy(planes)[None]  # [1, 3, h, w]
    if pixels.dtype.kind == "u":
        image.div_(float(np.iinfo(pixels.dtype).max))
    size, mode = tuple(preprocessing.image_size), preprocessing.interpolation
    if tuple(image.shape[2:]) != size:
        image = torch.nn.functional.interpolate(
            image, size=size, mode=mode, antialias=mode != "nearest"
        )  # [1, 3, H, W]
    return image[0].clamp_(0, 1)  # bicubic overshoots


# Whether X is acceptable


def _reject_single(X: Any) -> None:
    """Raise for what is not a collection of images at all."""
    if X is None:
        raise ValueError(f"X is None; pass {_ACCEPTED}")
    if isinstance(X, str | bytes | os.PathLike):
        raise ValueError(_single_path_message(os.fsdecode(X)))
    if isinstance(X, Image.Image):
        raise ValueError("X is a single PIL image; pass a list, [image]")
    if hasattr(X, "tocsr") or (isinstance(X, torch.Tensor) and X.layout != torch.strided):
        raise TypeError(f"X is sparse ({type(X).__name__}); images are dense: pass X.toarray()")
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X is an iterator ({type(X).__name__}), which can be read only once; pass list(X)"
        )


def _single_path_message(path: str) -> str:
    if os.path.isdir(path):
        return (
            f"X is a single path, the directory {path!r}; pass a list of files, such as "
            f'sorted(Path({path!r}).rglob("*.png"))'
        )
    return f"X is a single path, {path!r}; pass a list of paths, [{path!r}]"


def _check_not_empty(n_samples: int, shape: tuple[int, ...]) -> None:
    if n_samples == 0:
        # The words that scikit-learn uses, and that its common checks look for.
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required."
        )


def _only_column(X: Any) -> Any:
    """The only column of a DataFrame (pandas, polars...); anything else as it is."""
    if not hasattr(X, "columns"):
        return X
    columns = list(X.columns)
    if len(columns) != 1:
        raise ValueError(
            f"X is a DataFrame of {len(columns)} columns, {columns}, where one column of images "
            "is expected; pass X[[column]], or image_shape=(h, w, c) if each row is an image"
        )
    return X[columns[0]]


def _as_array(X: Any) -> Array:
    """Array-like -> ndarray; a memmap stays on disk."""
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if not hasattr(X, "__array__"):
        raise ValueError(f"X is of unsupported type {type(X).__name__}; pass {_ACCEPTED}")
    return np.asarray(X)


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
    if X.dtype.kind == "f":
        check_range(X)


def _check_tensor(X: torch.Tensor) -> None:
    shape = tuple(X.shape)
    _check_not_empty(len(X) if X.ndim else 1, shape)
    if X.dtype != torch.uint8 and not X.dtype.is_floating_point:
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
    if X.is_floating_point():
        check_range(X)


def _open_rows(X: Any, image_shape: tuple[int, int, int]) -> ImageSource:
    """2-D X, each row one image."""
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    positive = all(isinstance(length, Integral) and length > 0 for length in shape)
    if len(shape) != 3 or not positive or shape[2] not in (1, 3):
        raise ValueError(
            f"image_shape={image_shape!r} is not (h, w, c) with h and w at least 1 and c 1 or 3"
        )
    if isinstance(X, list | tuple | torch.Tensor):
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
    if X.dtype.kind == "f":
        check_range(X)
    return ImageSource(X, image_shape=shape)
