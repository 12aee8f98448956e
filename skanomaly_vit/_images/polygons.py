"""Polygons of labelling tools: LabelMe's and COCO's JSON, drawn as masks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from skanomaly_vit._images.decoding import Array

#: A closed line: (x, y) of each corner, in pixels.
Polygon: TypeAlias = list[tuple[float, float]]

_FORMS = "LabelMe's (imageHeight, imageWidth, shapes) or COCO's (images, annotations)"


def read_polygons(path: str) -> Array:
    """Mask of the polygons of a JSON file that belongs to one image.

    Parameters
    ----------
    path : str
        A file of LabelMe, with shapes that are polygons or rectangles, or of COCO, with polygons or
        boxes.

    Returns
    -------
    mask : ndarray of shape (height, width), bool
        True inside any polygon, its outline included.

    Raises
    ------
    ValueError
        If the file is none of these, is about several images, or holds no polygon.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"the polygons {path!r} cannot be read: {error}") from error
    try:
        (width, height), polygons = _size_of(content), list(_polygons_of(content))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} holds no polygons that can be read ({error}); pass a JSON file "
            f"of {_FORMS}"
        ) from error
    if not polygons:
        raise ValueError(f"{path!r} holds no polygon; draw one, or pass no region")
    return _draw(polygons, width, height)


def _size_of(content: Any) -> tuple[int, int]:
    """Width and height of the image."""
    if "shapes" in content:
        return int(content["imageWidth"]), int(content["imageHeight"])
    images = content["images"]
    if len(images) != 1:
        raise ValueError(f"it is about {len(images)} images, where one region serves all")
    return int(images[0]["width"]), int(images[0]["height"])


def _polygons_of(content: Any) -> Iterator[Polygon]:
    if "shapes" in content:
        yield from map(_of_labelme, content["shapes"])
        return
    for annotation in content["annotations"]:
        outlines = annotation.get("segmentation") or []
        if isinstance(outlines, dict):
            raise ValueError("a run-length mask; save it as an image, and pass that")
        for flat in outlines:
            yield list(zip(flat[::2], flat[1::2], strict=True))
        if not outlines:
            left, top, width, height = annotation["bbox"]
            yield _rectangle((left, top), (left + width, top + height))


def _of_labelme(shape: Any) -> Polygon:
    kind, points = shape.get("shape_type", "polygon"), [tuple(p) for p in shape["points"]]
    if kind == "rectangle":
        return _rectangle(points[0], points[1])
    if kind != "polygon":
        raise ValueError(f"a shape of type {kind!r}; draw polygons or rectangles")
    return points


def _rectangle(first: tuple[float, float], second: tuple[float, float]) -> Polygon:
    (left, top), (right, bottom) = first, second
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _draw(polygons: list[Polygon], width: int, height: int) -> Array:
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        if len(polygon) < 3:
            raise ValueError(f"a polygon has {len(polygon)} corners; at least 3 are needed")
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=1)
    return np.asarray(canvas).copy()
