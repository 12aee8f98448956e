"""Names of images: what a page shows, and the paths that its tables hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.provenance import printable


@dataclass(frozen=True)
class Names:
    """Names of images.

    Parameters
    ----------
    shown : list of str
        Printable.
    paths : list of str
        Path below `root`, as the file system has it; a name where there is no path.
    root : str
        Common folder of all images; empty if there is none.
    """

    shown: list[str]
    paths: list[str]
    root: str


def name_images(names: Any, source: ImageSource) -> Names:
    """Name images as given, or else by their paths below their common folder."""
    files = [source.path(i) for i in range(len(source))]
    root = common_folder([path for path in files if path is not None])
    paths = [
        f"image {i}" if path is None else os.path.relpath(path, root) if root else path
        for i, path in enumerate(files)
    ]
    if names is None:
        return Names([printable(path) for path in paths], paths, root)
    given = _as_given(names, len(source))
    known = [
        name if file is None else path for name, file, path in zip(given, files, paths, strict=True)
    ]
    return Names([printable(name) for name in given], known, root)


def _as_given(names: Any, n: int) -> list[str]:
    given = names.tolist() if hasattr(names, "tolist") else list(names)
    if isinstance(names, str) or len(given) != n:
        found = f"is the text {names!r}" if isinstance(names, str) else f"holds {len(given)}"
        raise ValueError(f"names {found}, X holds {n} images; pass one for each")
    return [
        os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name) for name in given
    ]


def common_folder(paths: Sequence[str]) -> str:
    """Common folder of all paths; empty if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no paths, relative ones among absolute ones, or several drives
        return ""
