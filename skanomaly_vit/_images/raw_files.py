"""Files of plain pixels (PPM, BMP) whose header and data disagree; Pillow reads what it finds."""

from __future__ import annotations

import struct
from typing import IO

import numpy as np
from PIL import Image

from skanomaly_vit._images.remarks import remark

_PPM_BINARY = {b"P4", b"P5", b"P6"}

_PPM_SAMPLES = {"1": 1, "L": 1, "I": 1, "RGB": 3}


def check_ppm(stream: IO[bytes], image: Image.Image) -> None:
    """Raise for samples above the white of the header, and for data behind the declared image.

    Images that follow the first one are remarked.
    """
    stream.seek(0)
    if stream.read(2) not in _PPM_BINARY:
        return
    (tile,) = image.tile  # type: ignore[attr-defined]
    white = tile.args[1] if tile.codec_name == "ppm" else None
    samples = image.width * _PPM_SAMPLES[image.mode]
    is_wide = image.mode == "I" or (white or 0) > 255
    row = -(-samples // 8) if image.mode == "1" else samples * (2 if is_wide else 1)
    stream.seek(tile.offset)
    data = stream.read(row * image.height)
    if white is not None and len(data) >= row * image.height:
        brightest = int(np.frombuffer(data, ">u2" if is_wide else np.uint8).max())
        if brightest > white:
            raise ValueError(f"its header says that white is {white}, and a value is {brightest}")
    rest = stream.read(2**16).strip()
    if rest[:2] in {*_PPM_BINARY, b"P1", b"P2", b"P3"}:
        remark("several images follow each other in the file, of which the first is read")
    elif rest:
        raise ValueError(
            f"its header declares {image.width} x {image.height} pixels, and more data follow them"
        )


def check_bmp(stream: IO[bytes]) -> None:
    """Raise if the header of plain pixels declares another size of data than that of its image."""
    stream.seek(0)
    header = stream.read(38)
    if len(header) < 38 or struct.unpack_from("<I", header, 14)[0] < 40:
        return
    width, height, _, depth, compression, size = struct.unpack_from("<iiHHII", header, 18)
    row = -(-abs(width) * depth // 32) * 4
    # Some writers count a few bytes of padding.
    if compression == 0 and size and abs(size - row * abs(height)) >= row:
        raise ValueError(
            f"its header declares {abs(width)} x {abs(height)} pixels, which take "
            f"{row * abs(height)} bytes, and {size} bytes of pixels"
        )
