"""Units of images: copies of one image, and groups of images, that stay together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.labels import as_labels

#: Bytes of an id: as many as a float64 holds exactly.
_ID_BYTES = 6


#: Names of the columns of ids: of the unit of an image, and of its content.
UNIT, CONTENT = "unit", "content"


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
    """

    units: np.ndarray
    contents: np.ndarray

    @property
    def has_copies(self) -> bool:
        """Whether there are images of equal content."""
        return len(np.unique(self.contents)) < len(self.contents)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Both, by name."""
        return {UNIT: self.units, CONTENT: self.contents}

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
    return Units(contents if named is None else _joined(named, contents), contents)


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


def _joined(groups: np.ndarray, copies: np.ndarray) -> np.ndarray:
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
