"""Defects that are kept beside a model: copies of the images, named by their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from skanomaly_vit._images.listing import walk_images
from skanomaly_vit._utils.files import write_atomically

# Hexadecimal digits of the SHA-256 of a file; 64 bits tell all images of a plant apart.
_DIGITS = 16


def folder_of(model: str) -> str:
    """Folder of the defects of a model."""
    return f"{model}.defects"


def list_defects(model: str, marked: Sequence[str] = ()) -> list[str]:
    """Paths of the images that are kept beside a model, then of marked ones that are not."""

    def fail(path: str, error: OSError) -> None:
        raise error

    folder = folder_of(model)
    kept = list(walk_images(folder, fail)) if os.path.isdir(folder) else []
    names = {os.path.basename(path) for path in kept}
    return [*kept, *(path for path in marked if _name(path) not in names)]


def keep_defects(model: str, paths: Sequence[str]) -> None:
    """Copy images beside a model; one that is there already stays as it is."""
    folder = Path(folder_of(model))
    folder.mkdir(exist_ok=True)
    for path in paths:
        target = folder / _name(path)
        if not target.exists():
            write_atomically(Path(path).read_bytes(), target)


def _name(path: str) -> str:
    """Name of a copy, by the content of the image."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{digest[:_DIGITS]}{Path(path).suffix.lower()}"
