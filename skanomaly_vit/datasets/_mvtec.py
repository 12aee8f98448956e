"""MVTec AD: categories of products, with masks of their defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit._utils.labels import as_objects
from skanomaly_vit.datasets._folders import (
    StrPath,
    as_bunch,
    find_file,
    find_folder,
    flatten,
    list_classes,
    show,
    show_entries,
    subfolders,
)

_MVTEC = (
    "a category of MVTec AD: train/good/<image>, test/good/<image>, test/<defect>/<image> and "
    "ground_truth/<defect>/<image>_mask.png"
)


def load_mvtec(path: StrPath, category: str | None = None) -> Bunch:
    """Load a category of MVTec AD [1]_, or of a data set in its layout.

    Parameters
    ----------
    path : str or path-like
        The folder of a category, with ``train/good`` and ``test/<defect>``; or, with `category`,
        the folder of all categories.
    category : str, default=None
        Such as ``"bottle"``.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, paths of the normal training images.
        - ``test_images``: ndarray of shape (m,), dtype object, paths, sorted by defect and name.
        - ``test_labels``: ndarray of shape (m,), dtype str, the defect, or ``"good"``.
        - ``test_y``: ndarray of shape (m,), int, +1 for normal, -1 for an anomaly.
        - ``test_masks``: ndarray of shape (m,), dtype object, path of the mask in which a defect
          is white; ``None`` for good images, and for all if there is no ``ground_truth``.
        - ``target_names``: ndarray of str, the values of ``test_labels``, sorted.

    Raises
    ------
    ValueError
        If the layout differs, or there is no such category.
    FileNotFoundError
        If there is no such folder, or a defect has no mask although there is ``ground_truth``.

    References
    ----------
    .. [1] P. Bergmann et al., "MVTec AD: A Comprehensive Real-World Dataset for Unsupervised
       Anomaly Detection", CVPR 2019.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_mvtec
    >>> bottles = load_mvtec("~/mvtec_anomaly_detection", "bottle")  # doctest: +SKIP
    """
    root = _find_category(find_folder(path, _MVTEC), category)
    train = list_classes(root / "train", _MVTEC)
    if list(train) != ["good"]:
        raise ValueError(
            f"{str(root / 'train')!r} holds the folders {show(list(train))}. Expected {_MVTEC}"
        )
    tested = as_bunch(list_classes(find_folder(root / "test", _MVTEC), _MVTEC))
    is_good = tested.labels == "good"
    return Bunch(
        images=as_objects(flatten(train)),
        test_images=tested.images,
        test_labels=tested.labels,
        test_y=np.where(is_good, 1, -1),
        test_masks=as_objects(_find_masks(root / "ground_truth", tested.images, is_good)),
        target_names=tested.target_names,
    )


def _find_category(root: Path, category: str | None) -> Path:
    """Folder of a category; an error names the existing ones."""
    folder = root if category is None else root / category
    if (folder / "train").is_dir():
        return folder
    categories = [each.name for each in subfolders(root) if (each / "train").is_dir()]
    hint = f"; pass category= one of {', '.join(map(repr, categories))}" if categories else ""
    raise ValueError(
        f"{str(folder)!r} is no category: there is no folder 'train' in it; {show_entries(root)}"
        f"{hint}. Expected {_MVTEC}"
    )


def _find_masks(folder: Path, images: np.ndarray, is_good: np.ndarray) -> list[str | None]:
    if not folder.is_dir():
        return [None] * len(images)
    return [
        None if good else _find_mask(folder, Path(image))
        for image, good in zip(images, is_good, strict=True)
    ]


def _find_mask(folder: Path, image: Path) -> str:
    mask = folder / image.parent.name / f"{image.stem}_mask.png"
    return str(find_file(mask, f"a mask of {str(image)!r}: {_MVTEC}"))
