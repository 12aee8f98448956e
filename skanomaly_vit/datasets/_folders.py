"""Folders of images: sorted listings, and errors that show the entries of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit._images.listing import SUFFIXES, has_image_suffix, visible_entries
from skanomaly_vit._utils.labels import as_objects

#: Paths of the images of each class, in the order of their names.
Classes: TypeAlias = dict[str, list[str]]

StrPath: TypeAlias = str | os.PathLike[str]

# Entries of a folder that a message shows.
_SHOWN = 5


def find_folder(path: StrPath, expected: str) -> Path:
    """Return the path of a folder, ``~`` expanded, or raise an error with the expected layout."""
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{str(folder)!r} is a file, not a folder. Expected {expected}")
    raise FileNotFoundError(
        f"there is no folder {str(folder)!r}; {show_entries(folder.parent)}. Expected {expected}"
    )


def find_file(path: Path, expected: str) -> Path:
    """Return the path of a file, or raise an error that shows the entries of its folder."""
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"there is no file {str(path)!r}; {show_entries(path.parent)}. Expected {expected}"
    )


def subfolders(folder: Path) -> list[Path]:
    return [Path(entry) for entry in visible_entries(folder) if entry.is_dir()]


def has_images(folder: Path) -> bool:
    return any(_is_image(entry) for entry in visible_entries(folder))


def list_images(folder: Path, expected: str) -> list[str]:
    """Paths of the images in a folder; raise if it holds none, or holds folders."""
    entries = visible_entries(folder)
    images = [entry.path for entry in entries if _is_image(entry)]
    nested = [entry.name for entry in entries if entry.is_dir()]
    if images and not nested:
        return images
    problem = f"folders among its images ({show(nested)})" if images else "no images"
    raise ValueError(
        f"{str(folder)!r} holds {problem}; {show_entries(folder)}. Expected {expected}. "
        f"Images are files that end in {', '.join(sorted(SUFFIXES))}, or in another suffix that "
        "Pillow opens"
    )


def list_classes(folder: Path, expected: str) -> Classes:
    """Images of each class of a tree ``folder/<class>/<image>``."""
    classes = {each.name: list_images(each, expected) for each in subfolders(folder)}
    loose = [entry.name for entry in visible_entries(folder) if _is_image(entry)]
    if classes and loose:
        raise ValueError(
            f"{str(folder)!r} holds images beside its class folders ({show(loose)}), which are of "
            f"no class. Expected {expected}"
        )
    if classes:
        return classes
    raise ValueError(
        f"{str(folder)!r} holds no class folders; {show_entries(folder)}. Expected {expected}"
    )


def check_same_classes(where: str, train: Iterable[Any], test: Iterable[Any]) -> None:
    """Raise if one part has classes that the other lacks."""
    found = {"train": set(train), "test": set(test)}
    for part, other in (("train", "test"), ("test", "train")):
        missing = found[other] - found[part]
        if missing:
            raise ValueError(
                f"{where}: the {part} part has no {show(sorted(missing))}, which the {other} part "
                "has. Expected the same classes in both parts"
            )


def as_bunch(train: Classes, test: Classes | None = None) -> Bunch:
    """Paths and labels, class by class."""
    bunch = Bunch(images=as_objects(flatten(train)), labels=_labels(train))
    if test is not None:
        bunch.update(test_images=as_objects(flatten(test)), test_labels=_labels(test))
    return Bunch(**bunch, target_names=np.array(sorted(train)))


def flatten(classes: Classes) -> list[str]:
    return [path for name in sorted(classes) for path in classes[name]]


def _labels(classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    names = sorted(classes)
    return np.repeat(names, [len(classes[name]) for name in names])


def show(names: Sequence[Any]) -> str:
    """Show the first few of many names."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def show_entries(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r} either"
    names = [entry.name + "/" * entry.is_dir() for entry in visible_entries(folder)]
    return f"found {show(names)} there" if names else "found nothing there"


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A broken link too: the error comes when the image is opened.
    return has_image_suffix(entry.name) and not entry.is_dir()
