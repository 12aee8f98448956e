"""Units of images: copies of one image, and groups of images, that stay together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import PLACE, TiledSource
from skanomaly_vit._utils.labels import as_labels

#: Bytes of an id: as many as a float64 holds exactly.
_ID_BYTES = 6


#: Names of the columns of ids: of the unit of an image, and of its content.
UNIT, CONTENT = "unit", "content"

#: Name of the column of the position of the image of a tile.
IMAGE = "image"

#: Names of all columns that are no features.
IDS = (UNIT, CONTENT, IMAGE, PLACE)


@dataclass(frozen=True)
class Units:
    """Units of images, known again in later calls: an id depends on content or group alone.

    Attributes
    ----------
    units : ndarray of shape (n_images,), float64
        Id of the unit of each image: images of equal content are in one, and so are images of one
        group.
    contents : ndarray of shape (n_images,), float64
        Id of the content of each image.
    images : ndarray of shape (n_rows,), float64, or None
        Position of the image of each row, where rows are tiles of images.
    """

    units: np.ndarray
    contents: np.ndarray
    images: np.ndarray | None = None

    @property
    def has_copies(self) -> bool:
        """Whether there are images of equal content."""
        return len(np.unique(self.contents)) < len(self.contents)

    def to_divide(self, groups: Any = None) -> np.ndarray | None:
        """Units that a split keeps whole; None if each image is its own, and it has no group."""
        return None if groups is None and not self.has_copies else self.units

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """All of them, by name."""
        images = {} if self.images is None else {IMAGE: self.images}
        return {UNIT: self.units, CONTENT: self.contents, **images}

    def columns_of(self, inputs: ImageSource, *, places: bool = False) -> dict[str, np.ndarray]:
        """Columns of the inputs of the images: these, or their tiles.

        Parameters
        ----------
        inputs : ImageSource
        places : bool, default=False
            Whether the places of tiles are a column.
        """
        if not isinstance(inputs, TiledSource):
            return self.columns
        owners = inputs.owners
        of_tiles = Units(self.units[owners], self.contents[owners], owners.astype(np.float64))
        more = {PLACE: inputs.places.astype(np.float64)} if places else {}
        return of_tiles.columns | more

    def any_in(self, ids: np.ndarray) -> np.ndarray:
        """Whether `ids` holds the unit or the content of each image."""
        return np.isin(self.units, ids) | np.isin(self.contents, ids)


def find_units(source: ImageSource, groups: Any = None) -> Units:
    """Find the units of images.

    Parameters
    ----------
    source : ImageSource
    groups : array-like of shape (n_images,) or None, default=None

    Raises
    ------
    ValueError
        If an image cannot be read, or `groups` has another length or a missing value.
    """
    named = None if groups is None else _ids_of(groups, len(source))  # refused before images
    contents = np.array([_id_of(source.digest(i)) for i in range(len(source))])
    return Units(contents if named is None else join(named, contents), contents)


def find_copies(X: Any) -> np.ndarray | None:
    """Number the distinct samples of any `X`, images or not, that a splitter is given.

    Parameters
    ----------
    X : array-like of length n_samples
        Images of any form, or rows of numbers.

    Returns
    -------
    copies : ndarray of shape (n_samples,), int, or None
        The same number for samples of equal content; an unreadable image is like no other. None if
        there are no copies, if all samples are alike (an X of zeros stands for any samples), or if
        `X` holds other things, such as labels.
    """
    rows = np.asarray(X) if len(getattr(X, "shape", ())) == 2 else np.empty(0)
    codes = number_rows(rows) if rows.dtype.kind in "biuf" and rows.ndim == 2 else _number_images(X)
    return codes if 1 < len(np.unique(codes)) < len(codes) else None


def number_rows(rows: np.ndarray) -> np.ndarray:
    """Number the distinct rows of an array (n_rows, n_features): equal ones have one number."""
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _number_images(X: Any) -> np.ndarray:
    try:
        source = open_images(X, on_error="nan")
    except (TypeError, ValueError):
        return np.empty(0)  # no images; an estimator that takes images will say why
    digests = source.each(source.digest, source.readable().tolist())
    numbers: dict[Any, int] = {}
    found = [numbers.setdefault(digests.get(i, i), len(numbers)) for i in range(len(source))]
    return np.array(found)


def _ids_of(groups: Any, n_images: int) -> np.ndarray:
    given = np.asarray(groups, dtype=object)  # NumPy would make texts of [1, "a"]
    if given.shape != (n_images,):
        raise ValueError(
            f"groups has shape {given.shape}; pass one group for each of {n_images} images"
        )
    return np.array([_id_of(_text_of(group)) for group in as_labels(given, "groups", "group")])


def _text_of(group: Any) -> bytes:
    """One text for a group, whichever type NumPy or pandas makes of it from call to call."""
    value = group.item() if isinstance(group, np.generic) else group
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if whole else value).encode()


def join(groups: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Units that hold whole groups and all copies: the smallest id of a group in each."""
    _, group = np.unique(groups, return_inverse=True)
    _, copy = np.unique(copies, return_inverse=True)
    n_groups, n_copies = group.max() + 1, copy.max() + 1
    size = n_groups + n_copies
    links = coo_array((np.ones(len(group)), (group, n_groups + copy)), shape=(size, size))
    unit = connected_components(links, directed=False)[1][group]
    smallest = np.full(unit.max() + 1, np.inf)
    np.minimum.at(smallest, unit, groups)
    return smallest[unit]


def _id_of(content: bytes) -> float:
    digest = hashlib.blake2b(content, digest_size=_ID_BYTES).digest()
    return float(int.from_bytes(digest, "big"))
