"""DIOR: objects in aerial images, by the bounding boxes of their annotations."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from sklearn.utils import Bunch

from skanomaly_vit._utils.labels import as_objects
from skanomaly_vit.datasets._folders import (
    StrPath,
    check_same_classes,
    find_file,
    find_folder,
    list_images,
    show,
    show_entries,
    subfolders,
)

_TREE = (
    "DIOR's layout: JPEGImages-trainval/*.jpg, JPEGImages-test/*.jpg, "
    "Annotations/Horizontal Bounding Boxes/*.xml and, if there, ImageSets/Main/*.txt"
)

#: Names become folders: neither separators nor leading dots.
_CLASS_NAME = re.compile(r"\w[\w .-]*")

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Thing(NamedTuple):
    """An object of an image."""

    label: str
    image: str
    box: tuple[int, int, int, int]

    @property
    def shorter_side(self) -> int:
        left, upper, right, lower = self.box
        return min(right - left, lower - upper)


def load_dior(path: StrPath, *, min_size: int = 120, min_images: int = 50) -> Bunch:
    """Load the objects of DIOR, aerial images with bounding boxes [1]_.

    The default is the selection of PANDA [2]_, which leaves 19 classes: objects of some size, of
    the classes that have enough of them.

    Parameters
    ----------
    path : str or path-like
        The folder that holds ``JPEGImages-trainval``, ``JPEGImages-test`` and
        ``Annotations/Horizontal Bounding Boxes``. If ``ImageSets/Main`` lists the images of each
        part, the function takes those images, and all of them have to exist.
    min_size : int, default=120
        Least width and least height of an object, in pixels.
    min_images : int, default=50
        Least number of such objects that a class needs in the training part to be kept.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, the path of each object's image.
        - ``boxes``: ndarray of shape (n, 4), int: left, upper, right, lower, in pixels.
        - ``labels``: ndarray of shape (n,), dtype str, the names of the classes.
        - ``target_names``: ndarray of shape (n_classes,), the classes, sorted.
        - ``test_images``, ``test_boxes``, ``test_labels``: likewise, of the test part.

    Raises
    ------
    ValueError
        If the layout differs, an annotation is damaged or declares a document type, or no class is
        kept.
    FileNotFoundError
        If a folder, an annotation or a listed image is missing.

    See Also
    --------
    crop_objects : Write the objects as images, which a detector can learn from.

    Notes
    -----
    The function takes the corners as written: a box is ``xmax - xmin`` pixels wide.

    References
    ----------
    .. [1] K. Li et al., "Object detection in optical remote sensing images: A survey and a new
       benchmark", ISPRS Journal of Photogrammetry and Remote Sensing 159, 2020.
    .. [2] T. Reiss et al., "PANDA: Adapting Pretrained Features for Anomaly Detection and
       Segmentation", CVPR 2021, arXiv:2010.05903.

    Examples
    --------
    >>> from skanomaly_vit.datasets import crop_objects, load_dior, load_image_folder
    >>> objects = load_dior("~/DIOR")  # doctest: +SKIP
    >>> dior = load_image_folder(crop_objects(objects, "~/DIOR-objects"))  # doctest: +SKIP
    """
    root = find_folder(path, _TREE)
    parts = {part: _find_things(root, part, min_size) for part in ("trainval", "test")}
    kept = _common_classes(parts["trainval"], min_images)
    if not kept:
        raise ValueError(
            f"{str(root)!r} has no class with at least min_images={min_images} objects of at least "
            f"min_size={min_size} pixels in its training part, of {len(parts['trainval'])} objects "
            "of that size"
        )
    train, test = ([thing for thing in parts[part] if thing.label in kept] for part in parts)
    check_same_classes(repr(str(root)), kept, [thing.label for thing in test])
    return Bunch(**_as_arrays(train), **_as_arrays(test, "test_"), target_names=np.array(kept))


def crop_objects(data: Bunch, folder: StrPath) -> str:
    """Write objects as PNG files, a folder for each class.

    It writes each file in full or not at all, and keeps existing files: after an interruption, a
    second call resumes where the first one stopped.

    Parameters
    ----------
    data : Bunch
        From `load_dior`.
    folder : str or path-like
        Gets ``train/<class>/<image>_<box>.png`` and ``test/<class>/...``.

    Returns
    -------
    folder : str
        The folder, for `load_image_folder`.

    Raises
    ------
    ValueError
        If the folder holds other files, such as objects of another `min_size`; or an image cannot
        be read, or is too small for a box.

    See Also
    --------
    load_image_folder : Loads the written files.

    Examples
    --------
    >>> from skanomaly_vit.datasets import crop_objects, load_dior
    >>> crop_objects(load_dior("~/DIOR"), "dior-objects")  # doctest: +SKIP
    'dior-objects'
    """
    root = Path(os.path.expanduser(folder))
    for part, prefix in (("train", ""), ("test", "test_")):
        columns = (data[f"{prefix}{name}"].tolist() for name in ("labels", "images", "boxes"))
        things = [
            _Thing(label, image, tuple(box)) for label, image, box in zip(*columns, strict=True)
        ]
        _crop_part(things, root / part)
    return str(root)


def _find_things(root: Path, part: str, min_size: int) -> list[_Thing]:
    """Find the objects of a part that are large enough, class by class."""
    annotations = find_folder(root / "Annotations" / "Horizontal Bounding Boxes", _TREE)
    things = [
        thing
        for image in _images_of(root, part)
        for thing in _read_annotation(annotations / f"{Path(image).stem}.xml", image)
        if thing.shorter_side >= min_size
    ]
    return sorted(things, key=lambda thing: thing.label)  # stable: images stay in order


def _common_classes(things: list[_Thing], min_images: int) -> list[str]:
    counts = Counter(thing.label for thing in things)
    return sorted(label for label, count in counts.items() if count >= min_images)


def _as_arrays(things: list[_Thing], prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}images": as_objects([thing.image for thing in things]),
        f"{prefix}boxes": np.array([thing.box for thing in things]).reshape(-1, 4),
        f"{prefix}labels": np.array([thing.label for thing in things]),
    }


def _images_of(root: Path, part: str) -> list[str]:
    """Images of a part: those in its lists, or all in its folder if it has no lists."""
    folder = find_folder(root / f"JPEGImages-{part}", _TREE)
    images = list_images(folder, _TREE)
    names = _listed(root / "ImageSets" / "Main", part)
    if names is None:
        return images
    missing = names - {Path(image).stem for image in images}
    if missing:
        raise FileNotFoundError(
            f"{str(folder)!r} lacks {len(missing)} of the {len(names)} images of ImageSets/Main: "
            f"{show(sorted(missing))}; {show_entries(folder)}. Expected {_TREE}"
        )
    return [image for image in images if Path(image).stem in names]


def _listed(folder: Path, part: str) -> set[str] | None:
    lists = [folder / f"{part}.txt"]
    if part == "trainval" and not lists[0].is_file():
        lists = [folder / "train.txt", folder / "val.txt"]
    if not all(path.is_file() for path in lists):
        return None
    return {name for path in lists for name in path.read_text(encoding="utf-8").split()}


# Annotations


class _NoDoctype(ElementTree.TreeBuilder):
    """Rejects document types, and so entities, which can grow without bound."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f"it declares a document type ({name})")


def _read_annotation(path: Path, image: str) -> list[_Thing]:
    """Read the objects that an annotation in the style of Pascal VOC describes."""
    find_file(path, f"an annotation of each image, by {_TREE}")
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        root = ElementTree.parse(path, parser).getroot()
        return [_Thing(_read_name(item), image, _read_box(item)) for item in root.iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be used: {error}. Expected plain XML, <object>s with a <name> "
            "and a <bndbox> of <xmin>, <ymin>, <xmax>, <ymax>"
        ) from error


def _read_name(item: ElementTree.Element) -> str:
    name = item.findtext("name", "").strip()
    if not _CLASS_NAME.fullmatch(name):
        raise ValueError(f"the class name {name!r} cannot name a folder")
    return name


def _read_box(item: ElementTree.Element) -> tuple[int, int, int, int]:
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        left, upper, right, lower = (round(float(text or "")) for text in texts)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a bounding box {texts} is not of numbers") from error
    if not (0 <= left < right and 0 <= upper < lower):
        raise ValueError(f"a bounding box {[left, upper, right, lower]} is no rectangle")
    return left, upper, right, lower


# Crops


def _crop_part(things: Iterable[_Thing], folder: Path) -> None:
    """Write each object as ``<class>/<image>_<box>.png``, unless the file exists."""
    targets = {_target(thing, folder): thing for thing in things}
    _check_no_others(folder, targets)
    by_image: dict[str, list[tuple[Path, _Thing]]] = {}
    for target, thing in targets.items():
        if not target.exists():
            by_image.setdefault(thing.image, []).append((target, thing))
    for image, missing in by_image.items():
        _crop(image, missing)


def _target(thing: _Thing, folder: Path) -> Path:
    # Named by its box: the choice of other objects does not change the name of this one.
    name = "_".join([Path(thing.image).stem, *map(str, thing.box)])
    return folder / thing.label / f"{name}.png"


def _check_no_others(folder: Path, targets: dict[Path, _Thing]) -> None:
    if not folder.is_dir():
        return
    found = {path for each in subfolders(folder) for path in each.glob("[!.]*")}
    others = sorted(str(path) for path in found - targets.keys())
    if others:
        raise ValueError(
            f"{str(folder)!r} holds {len(others)} files that are not of these objects: "
            f"{show(others)}. Expected a new folder, or one with some of these objects"
        )


def _crop(image: str, missing: list[tuple[Path, _Thing]]) -> None:
    try:
        with Image.open(image) as opened:
            pixels = opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"the image {image!r} cannot be read: {error}") from error
    for target, thing in missing:
        left, upper, right, lower = thing.box
        # Boxes may end a pixel or two beyond the image; crops get no black rim.
        box = (left, upper, min(right, pixels.width), min(lower, pixels.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"the bounding box {list(thing.box)} is outside the image {image!r} of "
                f"{pixels.width} x {pixels.height} pixels"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        _save(pixels.crop(box), target)


def _save(image: Image.Image, target: Path) -> None:
    """Write a file in full or not at all."""
    # Hidden: a file left by an interruption is no image of the class.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        image.save(unfinished, format="PNG")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
