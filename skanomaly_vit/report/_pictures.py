"""Pictures of a report: thumbnails, large copies and maps, in the page or in files beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import joblib
import numpy as np

from skanomaly_vit._images.pixels import shrink
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit.display._overlay import Encoded, Picture, Scale, encode, encode_map, shrink_map
from skanomaly_vit.report._figures import has_maps

Array: TypeAlias = np.ndarray[Any, Any]

_THUMBNAIL = 96  # pixels of the longest side, in the list

_LARGE = 360  # pixels of the longest side, enlarged

_MAP = 120  # pixels of the longest side of a map, which is smooth

#: Names of the files that a report writes, and may remove again.
_OWN_FILE = re.compile(r"[0-9a-f]{32}\.(jpeg|png)")


@dataclass(frozen=True)
class Copies:
    """Small copy of an image, and a large one where it costs the page nothing."""

    thumbnail: Picture
    large: Picture | None


@dataclass(frozen=True)
class Enlarged:
    """Large copy of an image.

    Parameters
    ----------
    image : Picture
    layer : Picture or None
        Its anomaly map, transparent where the image is normal, to be laid over it.
    highest : float or None
        Highest value of the map.
    """

    image: Picture
    layer: Picture | None
    highest: float | None


class Album:
    """Keeps pictures in the page, as data URIs.

    A report that fails leaves no picture behind, one that succeeds none of an older report.

    Attributes
    ----------
    holds_large : bool
        Whether it has room for large copies of all images.
    """

    holds_large = False

    def add(self, encoded: Encoded) -> Picture:
        return encoded.embed()

    def __enter__(self) -> Album:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Nothing stands outside the page."""


class FolderAlbum(Album):
    """Keeps pictures as files in a folder beside the page, named after their content.

    So a page of an older report stays whole until the new one has taken its place.
    """

    holds_large = True

    def __init__(self, page: Path) -> None:
        self._folder = page.with_name(f"{page.stem}_files")
        if self._folder.exists() and not self._folder.is_dir():
            raise FileExistsError(
                f"{str(self._folder)!r} is a file, and the pictures of {page.name!r} go into a "
                "folder of this name; rename it, or pass another path"
            )

    def add(self, encoded: Encoded) -> Picture:
        name = f"{encoded.digest}.{encoded.kind}"
        (self._folder / name).write_bytes(encoded.content)
        self._names.add(name)
        return encoded.at(quote(os.fsencode(f"{self._folder.name}/{name}")))

    def __enter__(self) -> FolderAlbum:
        self._folder.mkdir(exist_ok=True)
        self._older, self._names = self._own_files(), set[str]()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        superfluous = self._own_files() - (self._names if kind is None else self._older)
        for name in superfluous:
            (self._folder / name).unlink()
        if kind is not None and not self._older:
            with suppress(OSError):  # holds files of others
                self._folder.rmdir()

    def _own_files(self) -> set[str]:
        names = {file.name for file in self._folder.iterdir()}
        return {name for name in names if _OWN_FILE.fullmatch(name)}


def copy_images(
    source: ImageSource, album: Album, n_jobs: int | None, advance: Callable[[], object]
) -> list[Copies]:
    """Small copies of all images."""

    def copy(position: int) -> Copies:
        pixels = source[position]
        large = album.add(encode(shrink(pixels, _LARGE))) if album.holds_large else None
        return Copies(album.add(encode(shrink(pixels, _THUMBNAIL))), large)

    parallel = joblib.Parallel(n_jobs, prefer="threads", return_as="generator")
    made = []
    for copies in parallel(joblib.delayed(copy)(i) for i in range(len(source))):
        made.append(copies)
        advance()
    return made


def enlarge(
    det: Any,
    X: Any,
    source: ImageSource,
    shown: Sequence[int],
    album: Album,
    advance: Callable[[], object],
    map_range: tuple[float, float] | None,
) -> tuple[dict[int, Enlarged], Scale | None]:
    """Large copies of some images, and the color scale of their maps."""
    copies: dict[int, Enlarged] = {}
    maps = {}
    for i in shown:
        if i not in copies:
            pixels = source[i]
            copies[i] = Enlarged(album.add(encode(shrink(pixels, _LARGE))), None, None)
            if has_maps(det):
                full = _map_of(det, X, i, pixels.shape[:2])
                # One small map at a time: maps of large images would fill the memory.
                maps[i] = shrink_map(full, _MAP)
                copies[i] = replace(copies[i], highest=float(full.max()))
        advance()
    if not maps:
        return copies, None
    scale = Scale.of(list(maps.values())) if map_range is None else Scale(*map_range)
    for i, values in maps.items():
        copies[i] = replace(copies[i], layer=album.add(encode_map(values, scale)))
    return copies, scale


def _map_of(det: Any, X: Any, i: int, shape: tuple[int, ...]) -> Array:
    values = np.asarray(det.anomaly_map(_safe_indexing(X, [i]))[0])
    if values.shape != shape or not np.isfinite(values).all():
        problem = "values that are not finite" if values.shape == shape else "another size"
        raise ValueError(
            f"{type(det).__name__}.anomaly_map gave a map of shape {values.shape} for sample {i} "
            f"of shape {shape}: {problem}"
        )
    return values
