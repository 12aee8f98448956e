"""Tiles of large pictures: an image is read as several inputs, and has one verdict."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Self, TypeAlias

import numpy as np

from skanomaly_vit._images.decoding import Array
from skanomaly_vit._images.missing import Maps
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit.exceptions import UnreadableImageError

#: Tiles of an image: rows and columns, their side in pixels, or "auto", the input of the backbone.
Tiling: TypeAlias = "tuple[int, int] | int | str"

#: Share of its side that a tile shares with the next one.
OVERLAP = 0.125

AUTO = "auto"

#: Name of the column of the place of a tile in the grid of its image.
PLACE = "place"


def check_tiles(tiles: Any) -> None:
    """Refuse what is no tiling.

    Raises
    ------
    ValueError
        If it is neither ``"auto"``, nor a side, nor rows and columns.
    """
    is_grid = isinstance(tiles, tuple | list) and len(tiles) == 2
    numbers = list(tiles) if is_grid else [tiles]
    if tiles == AUTO or all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1 for n in numbers
    ):
        return
    raise ValueError(
        f"tiles={tiles!r} is not 'auto', a side in pixels, or (rows, columns), each at least 1"
    )


def boxes_of(size: tuple[int, int], tiling: Tiling, pixels: tuple[int, int]) -> Array:
    """Boxes of the tiles of an image, row by row: (n_tiles, 4) int, top, left, bottom, right.

    Parameters
    ----------
    size : (int, int)
        Height and width of the image.
    tiling : (int, int), int or "auto"
    pixels : (int, int)
        Height and width of the input of the backbone.
    """
    return _boxes(*_spans_of(size, tiling, pixels))


#: First and last pixel of parts of a side.
Spans: TypeAlias = list[tuple[int, int]]


def _boxes(vertical: Spans, horizontal: Spans) -> Array:
    return np.array(
        [(top, left, bottom, right) for top, bottom in vertical for left, right in horizontal]
    )


def _spans_of(
    size: tuple[int, int], tiling: Tiling, pixels: tuple[int, int]
) -> tuple[Spans, Spans]:
    """Spans of the rows and of the columns of the tiles of an image."""
    if isinstance(tiling, tuple | list):
        return _divided(size[0], tiling[0]), _divided(size[1], tiling[1])
    sides = pixels if isinstance(tiling, str) else (tiling, tiling)
    return _covered(size[0], sides[0]), _covered(size[1], sides[1])


def _divided(side: int, number: int) -> Spans:
    """Spans of `number` equal parts of a side, each a little larger than its share."""
    number = min(number, side)
    part = min(side, math.ceil(side / (number - (number - 1) * OVERLAP)))
    return _spread(side, part, number)


def _covered(side: int, part: int) -> Spans:
    """Spans of parts of a given length that cover a side."""
    if part >= side:
        return [(0, side)]
    step = max(1, round(part * (1 - OVERLAP)))
    return _spread(side, part, 1 + math.ceil((side - part) / step))


def _spread(side: int, part: int, number: int) -> Spans:
    starts = np.linspace(0, side - part, number).round().astype(int)
    return [(start, start + part) for start in starts.tolist()]


class TiledSource(ImageSource):
    """Tiles of the images of a source, image by image, each as an image of its own.

    Attributes
    ----------
    owners : ndarray of shape (n_tiles,), int
        Position of the image of each tile, ascending. A tile without a pixel that counts is left
        out, and so is an image whose size cannot be read.
    places : ndarray of shape (n_tiles,), int
        Place of each tile in the grid of its image, row by row from 0.
    """

    owners: Array
    places: Array
    _grids: Array  # number of rows and columns of the image of each tile
    _boxes: Array
    _wholes: Array  # height and width of the image of each tile

    @classmethod
    def of(cls, source: ImageSource, tiling: Tiling, pixels: tuple[int, int]) -> TiledSource:
        """Make the tiles of all images."""

        def cut(position: int) -> list[tuple[int, ...]]:
            size = source.size(position)
            vertical, horizontal = _spans_of(size, tiling, pixels)
            boxes, grid = _boxes(vertical, horizontal), (len(vertical), len(horizontal))
            return [
                (position, place, *grid, *size, *boxes[place].tolist())
                for place in _counting(source, position, size, boxes)
            ]

        found = source.each(cut, range(len(source))).values()
        table = np.array([row for rows in found for row in rows], dtype=int).reshape(-1, 10)
        tiled = cls.__new__(cls)
        vars(tiled).update(vars(source._like(source._index[table[:, 0]])))
        tiled.owners, tiled.places = table[:, 0], table[:, 1]
        tiled._grids, tiled._wholes, tiled._boxes = table[:, 2:4], table[:, 4:6], table[:, 6:]
        tiled._forget()
        return tiled

    def _forget(self) -> None:
        """Begin with no decoded image: tiles follow one another, so that one is enough."""
        self._lock = threading.Lock()
        self._decoded: tuple[int, Array] | None = None
        self._broken: dict[int, str] = {}

    def __getitem__(self, index: int) -> Array:
        """One tile (h, w, 3); the image is decoded once for all its tiles."""
        item = int(self._index[index])
        with self._lock:
            if self._decoded is None or self._decoded[0] != item:
                self._decoded = None  # before the next one takes memory
                self._decoded = item, self._decode(index, item)
            pixels = self._decoded[1]
        return pixels[self._slices(index)]

    def _decode(self, index: int, item: int) -> Array:
        """The image of a tile; one that cannot be decoded is tried once."""
        if item in self._broken:
            cause = self._broken[item]
            raise self.set_aside(index, f": the image cannot be decoded: {cause}", cause)
        try:
            return super().__getitem__(index)
        except UnreadableImageError as error:
            self._broken[item] = error.images[0].cause
            raise

    def take(self, indices: Any) -> Self:
        """See `ImageSource`."""
        return self._of_tiles(super().take(indices), np.asarray(indices))

    def subset(self, positions: Array) -> Self:
        """See `ImageSource`."""
        return self._of_tiles(super().subset(positions), positions)

    def _of_tiles(self, part: Self, chosen: Array) -> Self:
        for name in ("owners", "places", "_grids", "_boxes", "_wholes"):
            setattr(part, name, getattr(self, name)[chosen])
        part._forget()
        return part

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a tile."""
        top, left, bottom, right = self._boxes[position].tolist()
        return bottom - top, right - left

    def digest(self, position: int) -> bytes:
        """Digest of the content of a tile's image, and of its place there."""
        return combine(super().digest(position), tuple(self._boxes[position].tolist()))

    def region(self, position: int, shape: tuple[int, int]) -> Array | None:
        """The pixels of a tile that count; None if all do."""
        height, width = self._wholes[position].tolist()
        whole = super().region(position, (height, width))
        return None if whole is None else whole[self._slices(position)]

    def _slices(self, position: int) -> tuple[slice, slice]:
        top, left, bottom, right = self._boxes[position].tolist()
        return slice(top, bottom), slice(left, right)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_decoded", "_broken")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    # Places of tiles

    def find_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles, which all images have.

        Raises
        ------
        ValueError
            If an image has others.
        """
        rows, columns = self._grids[0].tolist()
        self.require_grid((rows, columns), set(self.places.tolist()))
        return rows, columns

    def require_grid(self, grid: tuple[int, int], places: Set[int]) -> None:
        """Reject images with another grid of tiles, or with a tile at a place that is not known.

        Raises
        ------
        ValueError
            If there is one.
        """
        advice = "With tile_density='position' each place of tiles has a density of its own; "
        is_other = (self._grids != grid).any(axis=1)
        if is_other.any():
            position = int(np.argmax(is_other))
            rows, columns = self._grids[position].tolist()
            raise ValueError(
                f"{self.name(position)} has {rows} x {columns} tiles (rows x columns), and others "
                f"{grid[0]} x {grid[1]}. {advice}pass images of one size, tiles=(rows, columns), "
                "or tile_density='shared'"
            )
        is_unknown = ~np.isin(self.places, list(places))
        if is_unknown.any():
            position = int(np.argmax(is_unknown))
            row, column = divmod(int(self.places[position]), grid[1])
            raise ValueError(
                f"{self.name(position)} has a tile in row {row}, column {column} (from 0), where "
                f"no image of fit had a pixel that counts. {advice}fit to images whose regions of "
                "interest reach there, or with tile_density='shared'"
            )

    def with_places(self, batches: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Add the place of each tile to features of readable tiles, which come in order."""
        n_seen = 0
        for batch in batches:
            n_rows = len(next(iter(batch.values())))
            rows = self.readable()[n_seen : n_seen + n_rows]
            n_seen += n_rows
            yield batch | {PLACE: self.places[rows, np.newaxis].astype(np.float64)}

    # Images from tiles

    def report_to(self, source: ImageSource) -> None:
        """Tell the source of the images which of them have a tile that cannot be read."""
        for position, image in self.unreadable.items():
            source.unreadable.setdefault(int(self.owners[position]), image)

    def worst(self, scores: Mapping[str, Array], source: ImageSource) -> dict[str, Array]:
        """Scores of each readable image, those of its tile of the lowest sum.

        Parameters
        ----------
        scores : mapping of str to ndarray of shape (n_readable_tiles,)
        source : ImageSource
            The images; it hears of those that cannot be read.
        """
        self.report_to(source)
        owners = self.owners[self.readable()]
        kept = np.isin(owners, source.readable())
        rows = worst_rows(np.sum(list(scores.values()), axis=0)[kept], owners[kept])
        return {name: values[kept][rows] for name, values in scores.items()}

    def worst_in_order(self, batches: Iterable[Array], source: ImageSource) -> Iterator[Array]:
        """Scores of readable images, from those of tiles that come batch by batch.

        Some at a time; an empty array is the end.
        """
        waiting, n_seen = np.empty(0), 0
        owners = np.empty(0, dtype=int)
        for scores in batches:
            places = self.readable()[n_seen : n_seen + len(scores)]
            n_seen += len(scores)
            self.report_to(source)
            if not len(scores):
                continue
            waiting = np.concatenate([waiting, scores])
            owners = np.concatenate([owners, self.owners[places]])
            is_done = owners < owners[-1]
            found = _worst(waiting[is_done], owners[is_done], source)
            if len(found):
                yield found
            waiting, owners = waiting[~is_done], owners[~is_done]
        self.report_to(source)
        yield _worst(waiting, owners, source)

    def stitch(self, maps: Maps, source: ImageSource) -> Iterator[tuple[int, Array]]:
        """Position and map (height, width) of each readable image, from those of its tiles.

        Parameters
        ----------
        maps : sequence of n_tiles ndarrays
            The map of each tile, at its own size.
        source : ImageSource
        """
        self.report_to(source)
        places = self.readable()
        owners = self.owners[places]
        for owner in source.readable(np.unique(owners)).tolist():
            rows = np.flatnonzero(owners == owner)
            shape = tuple(self._wholes[places[rows[0]]].tolist())
            total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            for row in rows.tolist():
                slices = self._slices(places[row])
                ramp = _ramp(*self.size(places[row]))
                total[slices] += ramp * maps[int(places[row])]
                weight[slices] += ramp
            # Between tiles without a pixel that counts, nothing is known.
            np.divide(total, weight, out=total, where=weight > 0)
            yield owner, total


def tile(source: ImageSource, pixels: tuple[int, int]) -> ImageSource:
    """Inputs of a backbone of `pixels`, height and width: the images, or their tiles."""
    tiling = source.framing.tiles
    return source if tiling is None else TiledSource.of(source, tiling, pixels)


def rows_of(inputs: ImageSource, images: Array) -> Array:
    """Positions of the inputs of some images."""
    if not isinstance(inputs, TiledSource):
        return images
    return np.flatnonzero(np.isin(inputs.owners, images))


def merge_scores(
    scores: Mapping[str, Array], inputs: ImageSource, source: ImageSource
) -> Mapping[str, Array]:
    """Scores of readable images, from those of their inputs that can be read."""
    return inputs.worst(scores, source) if isinstance(inputs, TiledSource) else scores


def merge_maps(maps: Maps, inputs: ImageSource, source: ImageSource) -> Maps:
    """Maps of all images, from those of their inputs; empty for images that cannot be read."""
    if not isinstance(inputs, TiledSource):
        return maps
    stitched = [np.empty((0, 0), np.float32)] * len(source)
    for position, plane in inputs.stitch(maps, source):
        stitched[position] = plane
    return np.stack(stitched) if len({plane.shape for plane in stitched}) == 1 else stitched


def worst_rows(scores: Array, owners: Array) -> Array:
    """Row of the lowest score of each owner, in ascending order of owners."""
    order = np.lexsort((np.arange(len(scores)), scores, owners))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = owners[order][1:] != owners[order][:-1]
    return order[is_first]


def _worst(scores: Array, owners: Array, source: ImageSource) -> Array:
    kept = np.isin(owners, source.readable())
    return scores[kept][worst_rows(scores[kept], owners[kept])]


def _counting(
    source: ImageSource, position: int, size: tuple[int, int], boxes: Array
) -> Iterator[int]:
    """Places of the tiles with a pixel that counts."""
    region = source.region(position, size) if source.has_regions else None
    for place, (top, left, bottom, right) in enumerate(boxes.tolist()):
        if region is None or region[top:bottom, left:right].any():
            yield place


def _ramp(height: int, width: int) -> Array:
    """Weight of a tile's pixels: it falls towards the edges, so that no seam shows."""
    vertical, horizontal = (
        np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32)
        for side in (height, width)
    )
    return np.outer(vertical, horizontal)
