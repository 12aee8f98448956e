"""Data sets that lie on the disk, as paths of images and their labels.

Nothing is downloaded: each function reads what was unpacked before, in the layout in which it is
given away. Images are paths, sorted by class and file name, which the detector decodes when it
needs them; only IDX files, where all images are in one file, give pixels. A layout that is not the
expected one is an error that says what was found, and where. Hidden files, and files that are not
images by their suffix, are left out.

>>> import tempfile
>>> from pathlib import Path
>>> from PIL import Image
>>> from skanomaly_vit.datasets import load_image_folder
>>> folder = tempfile.TemporaryDirectory()
>>> for name in ["cat/1.png", "cat/2.png", "dog/1.png"]:
...     path = Path(folder.name, name)
...     path.parent.mkdir(exist_ok=True)
...     Image.new("L", (8, 8)).save(path)
>>> animals = load_image_folder(folder.name)
>>> [Path(path).name for path in animals.images]
['1.png', '2.png', '1.png']
>>> animals.labels.tolist()
['cat', 'cat', 'dog']
>>> folder.cleanup()
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch, check_random_state

from skanomaly_vit._dior import crop_objects, load_dior
from skanomaly_vit._folders import (
    Classes,
    StrPath,
    as_bunch,
    check_same_classes,
    find_file,
    find_folder,
    flatten,
    has_images,
    list_classes,
    list_images,
    show,
    show_entries,
    subfolders,
)
from skanomaly_vit._idx import FASHION_MNIST_CLASSES, load_fashion_mnist, load_idx
from skanomaly_vit._labels import as_objects

__all__ = [
    "FASHION_MNIST_CLASSES",
    "crop_objects",
    "load_cats_vs_dogs",
    "load_dior",
    "load_elpv",
    "load_fashion_mnist",
    "load_idx",
    "load_image_folder",
    "load_mvtec",
]

_CLASS_TREE = "<class>/<image>, or train/<class>/<image> and test/<class>/<image>"
_CATS_VS_DOGS = (
    "cats-vs-dogs as train/cat.0.jpg and train/dog.0.jpg, or as PetImages/Cat/0.jpg and "
    "PetImages/Dog/0.jpg"
)
_MVTEC = (
    "a category of MVTec AD: train/good/<image>, test/good/<image>, test/<defect>/<image> and "
    "ground_truth/<defect>/<image>_mask.png"
)
_ELPV = (
    "the data folder of elpv-dataset: labels.csv with lines 'images/<image> <probability of a "
    "defect: 0, 1/3, 2/3 or 1> <mono or poly>', and the images"
)


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
        with the same classes in both; further folders beside ``train`` and ``test`` are left out.
    n_per_class : int, default=None
        Images to draw of each class, and of each part, without replacement; ``None`` takes all.
    random_state : int, RandomState instance or None, default=None
        Source of the draw. With an int, which images of a class are drawn does not depend on the
        other classes.

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
        If the layout is another one, a class has no images or fewer than `n_per_class`, or the
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
    # A generator of its own: which images are drawn does not depend on the other classes.
    # Nor on where the tree lies; only a part's name counts, as parts are draws of their own.
    part = folder.parent.relative_to(root).name
    rng = np.random.default_rng([seed, *os.fsencode(f"{part}/{folder.name}")])
    chosen = rng.choice(len(paths), n_images, replace=False)
    return [paths[i] for i in sorted(chosen)]


def load_cats_vs_dogs(path: StrPath) -> Bunch:
    """Load cats and dogs, in the layout of Kaggle's competition or of Microsoft's archive.

    Parameters
    ----------
    path : str or path-like
        A folder that holds ``train/cat.0.jpg`` and ``train/dog.0.jpg``, or ``PetImages/Cat`` and
        ``PetImages/Dog``; or the folder ``train`` or ``PetImages`` itself. Kaggle's ``test1`` has
        no labels and is left out.

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
        If the layout is another one, or a class has no images.
    FileNotFoundError
        If there is no such folder.

    Notes
    -----
    Microsoft's archive holds a few files without content, which are left out.

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
        If the layout is another one, or there is no such category.
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
    """Folder of a category; if it is none, name those that there are."""
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


def load_elpv(path: StrPath | None = None) -> Bunch:
    """Load solar cells in electroluminescence images, functional and defective [1]_.

    Parameters
    ----------
    path : str or path-like, default=None
        The folder of ``labels.csv``. ``None`` finds the data that comes with the Python package
        ``elpv-dataset``.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, the paths, in the order of the list.
        - ``defect_probability``: ndarray of shape (n,), float: 0, 1/3, 2/3 or 1.
        - ``module_type``: ndarray of shape (n,), ``"mono"`` or ``"poly"`` (crystalline).
        - ``y``: ndarray of shape (n,), int, +1 where the probability is 0, else -1.

    Raises
    ------
    ImportError
        If `path` is None and ``elpv-dataset`` is not installed.
    ValueError
        If the list is not as expected.
    FileNotFoundError
        If the list or an image is missing.

    References
    ----------
    .. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
       Electroluminescence Images", Machine Vision and Applications 32, 2021.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_elpv
    >>> cells = load_elpv()
    >>> len(cells.images), int((cells.y == 1).sum())
    (2624, 1508)
    """
    root = find_folder(_find_elpv() if path is None else path, _ELPV)
    table = find_file(root / "labels.csv", _ELPV)
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    cells = [_read_cell(row, f"{str(table)!r}, line {i}") for i, row in enumerate(rows, 1) if row]
    if not cells:
        raise ValueError(f"{str(table)!r} is empty. Expected {_ELPV}")
    names, probability, module_type = zip(*cells, strict=True)
    return Bunch(
        images=as_objects([str(find_file(root / name, _ELPV)) for name in names]),
        defect_probability=np.array(probability),
        module_type=np.array(module_type),
        y=np.where(np.array(probability) == 0, 1, -1),
    )


def _find_elpv() -> Path:
    spec = find_spec("elpv_dataset")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "load_elpv needs the package elpv-dataset, which holds the images: "
            "pip install elpv-dataset. Or pass the path of its data folder",
            name="elpv_dataset",
        )
    return Path(spec.submodule_search_locations[0], "data")


def _read_cell(row: list[str], where: str) -> tuple[str, float, str]:
    try:
        name, text, module_type = row
        (probability,) = (k / 3 for k in range(4) if abs(float(text) - k / 3) < 0.01)
    except ValueError:  # too few columns, no number, or none of these probabilities
        module_type = ""
    if module_type not in ("mono", "poly"):
        raise ValueError(f"{where}, reads {' '.join(row)!r}. Expected {_ELPV}")
    return name, probability, module_type
