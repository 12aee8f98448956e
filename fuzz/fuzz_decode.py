"""Coverage-guided fuzzing of how image files are read; see README.md beside this file."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "skanomaly_vit"]):
    from PIL import Image

    Image.init()  # all formats, instrumented

    from skanomaly_vit._images.opening import open_images
    from skanomaly_vit._images.preprocessing import Preprocessing

import numpy as np

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "ICO", "PPM")
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16", "F")
SMALL = Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
MAX_PIXELS = 2**20  # a decode of more would be slow, not wrong


def write_corpus(folder: Path) -> None:
    """One small image of every format and mode, some with frames, EXIF or a colour profile."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in MODES:
        if mode in ("I;16", "F"):
            grey = pixels[..., 0]
            image = Image.fromarray(
                grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.float32) / 255
            )
        else:
            image = Image.fromarray(pixels).convert("L" if mode == "LA" else mode)
            image = image.convert(mode)
        for kind in FORMATS:
            variants = [{}, {"exif": exif}, {"icc_profile": b"no profile"}]
            variants += [{"save_all": True, "append_images": [image]}]
            for number, options in enumerate(variants):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, **options)
                except (OSError, ValueError, TypeError, KeyError):
                    continue  # a mode that the format does not have
                name = f"{kind}-{mode.replace(';', '')}-{number}"
                (folder / name).write_bytes(buffer.getvalue())


def check(data: bytes, path: str) -> None:
    """An image, or one error that names it; nothing else, and no warning."""
    Path(path).write_bytes(data)
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_images([path], max_pixels=MAX_PIXELS)
        try:
            (batch,) = source.batches(SMALL, batch_size=1)
        except ValueError as error:
            if repr(path) not in str(error) or list(source.unreadable) != [0]:
                raise AssertionError(f"an error that names no image: {error}") from error
        else:
            if not batch.isfinite().all() or source.unreadable:
                raise AssertionError("pixels that are none")
            if source.size(0) != source[0].shape[:2]:
                raise AssertionError("a size that is not the image's")
    if limit != Image.MAX_IMAGE_PIXELS:
        raise AssertionError("Pillow's limit was left changed")


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-decode-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    path = os.path.join(folder, "image")
    atheris.Setup([*sys.argv, str(corpus)], lambda data: check(data, path))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
