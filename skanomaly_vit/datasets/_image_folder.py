"""Image folders: one folder for each class."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch, check_random_state

from skanomaly_vit.datasets._folders import (
    Classes,
    StrPath,
    as_bunch,
    check_same_classes,
    find_folder,
    list_classes,
    show_entries,
    subfolders,
)

_CLASS_TREE = "<class>/<image>, or train/<class>/<image> and test/<class>/<image>"


def load_image_folder(
    path: StrPath,
    *,
    n_per_class: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Load a tree with a folder of images for each class.

    Parameters
    ----------
    path : str or path-like
        A folder ``<class>/<image>``, or ``train/<class>/<image>`` and ``test/<class>/<image>``
        with the same classes in both. The function ignores folders beside ``train`` and ``test``.
    n_per_class : int, default=None
        Images to draw of each class and part, without replacement; ``None`` takes all.
    random_state : int, RandomState instance or None, default=None
        Source of the draw. With an int, the images drawn of a class do not depend on the other
        classes.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, the paths, sorted by class and name.
        - ``labels``: ndarray of shape (n,), dtype str, the names of the classes.
        - ``target_names``: ndarray of shape (n_classes,), the classes, sorted.
        - ``test_images``, ``test_labels``: likewise, where the tree has the two parts.

    Raises
    ------
    ValueError
        If the layout differs, a class has no images or fewer than `n_per_class`, or the
        parts have different classes.
    FileNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_image_folder
    >>> cifar = load_image_folder("~/cifar10", n_per_class=100)  # doctest: +SKIP
    >>> normal = cifar.images[cifar.labels == "ship"]  # doctest: +SKIP
    """
    if n_per_class is not None and (
        not isinstance(n_per_class, Integral) or isinstance(n_per_class, bool) or n_per_class < 1
    ):
        raise ValueError(f"n_per_class={n_per_class!r} is not None or an integer of at least 1")
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    root = find_folder(path, _CLASS_TREE)
    parts = [list_classes(folder, _CLASS_TREE) for folder in _parts(root)]
    if len(parts) == 2:
        check_same_classes(repr(str(root)), *parts)
    return as_bunch(*(_draw(part, root, n_per_class, seed) for part in parts))


def _parts(root: Path) -> list[Path]:
    """Folders that hold class folders: those of the parts, or the root alone."""
    parts = [part for part in (root / "train", root / "test") if part.is_dir()]
    if len(parts) == 2:
        return parts
    # A single folder of that name may be a class: trains.
    if parts and subfolders(parts[0]):
        raise ValueError(
            f"{str(root)!r} has class folders in {parts[0].name!r}, but not both train and test; "
            f"{show_entries(root)}. Expected {_CLASS_TREE}"
        )
    return [root]


def _draw(classes: Classes, root: Path, n_per_class: int | None, seed: int) -> Classes:
    if n_per_class is None:
        return classes
    return {name: _draw_class(paths, root, n_per_class, seed) for name, paths in classes.items()}


def _draw_class(paths: list[str], root: Path, n_images: int, seed: int) -> list[str]:
    folder = Path(paths[0]).parent
    if len(paths) < n_images:
        raise ValueError(
            f"{str(folder)!r} holds {len(paths)} images, fewer than n_per_class={n_images}"
        )
    # A generator for each class: the images drawn do not depend on the other classes, nor on the
    # place of the tree. The name of the part counts, since each part is a separate draw.
    part = folder.parent.relative_to(root).name
    rng = np.random.default_rng([seed, *os.fsencode(f"{part}/{folder.name}")])
    chosen = rng.choice(len(paths), n_images, replace=False)
    return [paths[i] for i in sorted(chosen)]
