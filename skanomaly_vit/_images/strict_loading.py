"""Loading of Pillow images that lets no half image pass, whatever the application has set.

``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is a global that Pillow's functions ask while they decode.
While this module decodes an image, the image is of a twin class, whose functions are copies that
find the global switched off. The global itself stays as it is, and so do Pillow's own classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import PIL
from PIL import Image, ImageFile

_FLAG = "LOAD_TRUNCATED_IMAGES"

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])

_TELLS_HALF_A_DDS = (12, 3)


def load_strictly(image: Image.Image) -> None:
    """``image.load()``, which raises for a file that ends early or whose pixels are damaged."""
    if image.format == "DDS" and getattr(image, "tile", None) and _PILLOW < _TELLS_HALF_A_DDS:
        raise ValueError(
            f"Pillow {PIL.__version__} does not tell half a DDS file from a whole one; upgrade it "
            "to 12.3 or newer, or convert the file"
        )
    with ExitStack() as undo:
        parts = [part for part in vars(image).values() if _is_of_pillow(part)]
        for part in (image, *parts):
            undo.enter_context(_as_twin(part))
        image.load()


@contextmanager
def _as_twin(part: Any) -> Iterator[None]:
    own: Any = type(part)
    twin = _twin(own)
    if twin is own:
        yield
        return
    part.__class__ = twin
    try:
        yield
    finally:
        if type(part) is twin:  # a stub becomes another object while it loads
            part.__class__ = own


def _is_of_pillow(part: Any) -> bool:
    return type(part).__module__.startswith("PIL.")


@functools.cache
def _twin(own: type[Any]) -> type[Any]:
    """A class as its own, but for functions that ask the flag; itself if it has none."""
    asking: dict[str, FunctionType] = {}
    for base in reversed(own.__mro__):
        if base is not ImageFile.ImageFile:
            asking |= {name: each for name, each in vars(base).items() if _asks(each)}
    # Behind a class whose own `load` calls that of `ImageFile`, and before the latter.
    bases = (own, _StrictFile) if issubclass(own, ImageFile.ImageFile) else (own,)
    if not asking and len(bases) == 1:
        return own
    return type(own.__name__, bases, {name: _strict(each) for name, each in asking.items()})


def _asks(function: Any) -> bool:
    if not isinstance(function, FunctionType):
        return False
    names = function.__code__.co_names
    return _FLAG in names or {"ImageFile", "load"} <= set(names)


def _strict(function: FunctionType) -> FunctionType:
    """A copy of a function that finds the flag switched off."""
    found = dict(function.__globals__)
    if _FLAG in found:
        found[_FLAG] = False
    if found.get("ImageFile") is ImageFile:
        found["ImageFile"] = SimpleNamespace(
            **vars(ImageFile) | {_FLAG: False, "ImageFile": _StrictFile}
        )
    return FunctionType(
        function.__code__, found, function.__name__, function.__defaults__, function.__closure__
    )


class _StrictFile(ImageFile.ImageFile):
    """A base of twins; `load` follows."""


_StrictFile.load = _strict(ImageFile.ImageFile.load)  # type: ignore[method-assign,arg-type]
