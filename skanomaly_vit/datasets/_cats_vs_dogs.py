"""Cats versus dogs, in Kaggle's layout or Microsoft's."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.utils import Bunch

from skanomaly_vit.datasets._folders import (
    Classes,
    StrPath,
    as_bunch,
    find_folder,
    has_images,
    list_classes,
    list_images,
    show_entries,
)

_CATS_VS_DOGS = (
    "cats-vs-dogs as train/cat.0.jpg and train/dog.0.jpg, or as PetImages/Cat/0.jpg and "
    "PetImages/Dog/0.jpg"
)


def load_cats_vs_dogs(path: StrPath) -> Bunch:
    """Load cats and dogs, in the layout of Kaggle's competition or of Microsoft's archive.

    Parameters
    ----------
    path : str or path-like
        A folder that holds ``train/cat.0.jpg`` and ``train/dog.0.jpg``, or ``PetImages/Cat`` and
        ``PetImages/Dog``; or the folder ``train`` or ``PetImages`` itself. Kaggle's ``test1`` has
        no labels, so the function ignores it.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, the paths, sorted by class and name
          (``cat.10.jpg`` comes before ``cat.2.jpg``).
        - ``labels``: ndarray of shape (n,), ``"cat"`` or ``"dog"``.
        - ``target_names``: ndarray of shape (2,), ``["cat", "dog"]``.

    Raises
    ------
    ValueError
        If the layout differs, or a class has no images.
    FileNotFoundError
        If there is no such folder.

    Notes
    -----
    Microsoft's archive holds a few empty files, which the function ignores.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_cats_vs_dogs
    >>> animals = load_cats_vs_dogs("~/dogs-vs-cats")  # doctest: +SKIP
    >>> cats = animals.images[animals.labels == "cat"]  # doctest: +SKIP
    """
    root = find_folder(path, _CATS_VS_DOGS)
    for inner in ("PetImages", "train"):
        if (root / inner).is_dir():
            root = root / inner
    if has_images(root):
        classes = _by_first_word(list_images(root, _CATS_VS_DOGS))
    else:
        found = list_classes(root, _CATS_VS_DOGS)
        classes = {name.lower(): paths for name, paths in found.items()}
    classes = {
        name: [path for path in paths if os.path.getsize(path) > 0]
        for name, paths in classes.items()
    }
    if sorted(classes) != ["cat", "dog"] or not all(classes.values()):
        found_classes = ", ".join(f"{len(classes[name])} of {name!r}" for name in sorted(classes))
        raise ValueError(
            f"{str(root)!r} holds images {found_classes}; {show_entries(root)}. "
            f"Expected {_CATS_VS_DOGS}"
        )
    return as_bunch(classes)


def _by_first_word(paths: list[str]) -> Classes:
    classes: Classes = {}
    for path in paths:
        classes.setdefault(Path(path).name.split(".")[0], []).append(path)
    return classes
