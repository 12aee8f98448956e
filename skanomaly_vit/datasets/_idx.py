"""IDX, the format of MNIST: one array a file, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit.datasets._folders import StrPath, check_same_classes, find_file, find_folder

#: Names of the labels 0 to 9 of Fashion-MNIST.
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_IDX = "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, each as is or with .gz"

# First bytes of an IDX file of unsigned bytes; the number of dimensions comes next.
_MAGIC = b"\x00\x00\x08"

_Shape: TypeAlias = tuple[int, ...]


def load_idx(path: StrPath, *, target_names: Any = None) -> Bunch:
    """Load images and labels from IDX files, the format of MNIST.

    Parameters
    ----------
    path : str or path-like
        A folder with ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and the same
        with ``t10k`` for the test part; each file as it is or compressed, with ``.gz``.
    target_names : sequence of str, default=None
        Names of the labels 0, 1, ...

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n, height, width), uint8, read-only; a memory map if the
          file is not compressed, so that pixels are read when needed.
        - ``labels``: ndarray of shape (n,), int; or str, with `target_names`.
        - ``target_names``: ndarray of shape (n_classes,): `target_names`, or the sorted labels.
        - ``test_images``, ``test_labels``: likewise, of the test part.

    Raises
    ------
    ValueError
        If a file is damaged or of another kind, the numbers of images and labels differ, the
        parts have images of different sizes or different classes, or a label has no name.
    FileNotFoundError
        If a file is missing.

    See Also
    --------
    load_fashion_mnist : With the names of its classes.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_idx
    >>> digits = load_idx("~/mnist")  # doctest: +SKIP
    >>> zeros = digits.images[digits.labels == 0]  # doctest: +SKIP
    """
    root = find_folder(path, _IDX)
    images, labels = _read_pair(root, "train", _IDX)
    test_images, test_labels = _read_pair(root, "t10k", _IDX)
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{str(root)!r} holds images of {images.shape[1:]} pixels to train and of "
            f"{test_images.shape[1:]} to test. Expected the same size in both parts"
        )
    check_same_classes(repr(str(root)), labels.tolist(), test_labels.tolist())
    names = np.unique(labels)
    if target_names is not None:
        names = np.array(list(target_names), dtype=str)
        if labels.max() >= len(names):
            raise ValueError(
                f"{str(root)!r} holds labels up to {labels.max()}, target_names names "
                f"{len(names)}. Expected a name for each label"
            )
        labels, test_labels = names[labels], names[test_labels]
    return Bunch(
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        target_names=names,
    )


def load_fashion_mnist(path: StrPath = "/usr/share/datasets/fashion-mnist") -> Bunch:
    """Load Fashion-MNIST [1]_, grey images of clothes.

    Parameters
    ----------
    path : str or path-like, default="/usr/share/datasets/fashion-mnist"
        A folder with the four IDX files. The default is the folder of Debian's package
        ``dataset-fashion-mnist``.

    Returns
    -------
    data : Bunch
        As from `load_idx`: 60,000 images of 28 x 28 pixels to train and 10,000 to test; labels
        are names, those of ``FASHION_MNIST_CLASSES``.

    Raises
    ------
    ValueError
        If a file is damaged.
    FileNotFoundError
        If a file is missing.

    See Also
    --------
    load_idx : Other data in this format.

    References
    ----------
    .. [1] H. Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
       Algorithms", arXiv:1708.07747.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_fashion_mnist
    >>> clothes = load_fashion_mnist()  # doctest: +SKIP
    >>> bags = clothes.images[clothes.labels == "Bag"]  # doctest: +SKIP
    """
    return load_idx(path, target_names=FASHION_MNIST_CLASSES)


def _read_pair(folder: Path, prefix: str, expected: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, h, w), uint8, and labels (n,), int, of one part of a data set."""
    images_path = _find(folder, f"{prefix}-images-idx3-ubyte", expected)
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte", expected)
    images, labels = _read_idx(images_path, n_dims=3), _read_idx(labels_path, n_dims=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{str(images_path)!r} holds {len(images)} images, {str(labels_path)!r} holds "
            f"{len(labels)} labels. Expected a label for each image"
        )
    return images, labels.astype(int)


def _read_idx(path: Path, *, n_dims: int) -> np.ndarray:
    """Read an array of unsigned bytes, read-only; of a plain file, mapped into memory."""
    if path.suffix == ".gz":
        return _read_gzipped(path, n_dims)
    with path.open("rb") as file:
        shape = _read_header(file, path, n_dims)
        offset = file.tell()
        _check_length(os.fstat(file.fileno()).st_size - offset, shape, path)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)


def _find(folder: Path, name: str, expected: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else find_file(folder / f"{name}.gz", expected)


def _read_gzipped(path: Path, n_dims: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            shape = _read_header(file, path, n_dims)
            content = file.read()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be decompressed: {error}. Expected a complete gzip file"
        ) from error
    _check_length(len(content), shape, path)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _read_header(file: BinaryIO | gzip.GzipFile, path: Path, n_dims: int) -> _Shape:
    magic = _MAGIC + bytes([n_dims])
    size = len(magic) + 4 * n_dims
    header = file.read(size)
    if not header.startswith(magic):
        raise ValueError(
            f"{str(path)!r} starts with the bytes {header[:4].hex(' ')!r}. Expected "
            f"{magic.hex(' ')!r}: an IDX file of unsigned bytes in {n_dims} dimension(s)"
        )
    if len(header) < size:
        raise ValueError(f"{str(path)!r} ends in its header. Expected {size} bytes of header")
    shape: _Shape = struct.unpack(f">{n_dims}I", header[len(magic) :])
    if 0 in shape:
        raise ValueError(f"{str(path)!r} is of shape {shape}. Expected at least one value")
    return shape


def _check_length(found: int, shape: _Shape, path: Path) -> None:
    expected = math.prod(shape)
    if found != expected:
        raise ValueError(
            f"{str(path)!r} holds {found} bytes after its header. Expected {expected}, for the "
            f"shape {shape} in its header"
        )
