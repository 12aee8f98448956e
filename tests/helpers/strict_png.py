"""A second reader of PNG, of this file alone: strict, slow, and without Pillow."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def join_chunks(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A file of chunks, with right checksums."""
    return _SIGNATURE + b"".join(chunk(*part) for part in parts)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of all chunks of a sound file."""
    found, at = [], len(_SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def decode_png(data: bytes) -> np.ndarray[Any, Any]:
    """Pixels (h, w, 3) of a file, white 1, over white; a ValueError if it breaks the format.

    Interlaced files are not known.
    """
    parts = chunks(data)
    names = [name for name, _ in parts]
    if names[:1] != [b"IHDR"] or names[-1:] != [b"IEND"] or b"IDAT" not in names:
        raise ValueError("chunks are missing")
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", parts[0][1])
    if depth not in _DEPTHS.get(color, ()) or any(rest):
        raise ValueError("no such type of image")
    others = {name: content for name, content in parts if name != b"IDAT"}
    try:
        inflating = zlib.decompressobj()
        raw = inflating.decompress(b"".join(c for n, c in parts if n == b"IDAT"))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    n_samples = _SAMPLES[color]
    row = -(-width * n_samples * depth // 8)
    if not inflating.eof or len(raw) != height * (row + 1):
        raise ValueError("another number of bytes than the header says")
    rows = _unfilter(np.frombuffer(raw, np.uint8).reshape(height, row + 1), n_samples * depth)
    samples = _samples(rows, depth)[:, : width * n_samples].reshape(height, width, n_samples)
    return _colors(samples, color, depth, others)


def _unfilter(rows: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    step = max(1, bits // 8)
    above = [0] * (rows.shape[1] - 1)
    found = []
    for kind, *values in rows.tolist():
        if kind > 4:
            raise ValueError("no such filter")
        line: list[int] = []
        for i, value in enumerate(values):
            left, up = (line[i - step] if i >= step else 0), above[i]
            corner = above[i - step] if i >= step else 0
            guess = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
            line.append((value + guess) & 255)
        found.append(line)
        above = line
    return np.array(found, np.uint8)


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def _samples(rows: np.ndarray[Any, Any], depth: int) -> np.ndarray[Any, Any]:
    if depth == 16:
        return rows.view(">u2").astype(int)
    shifts = np.arange(8 - depth, -1, -depth)
    return ((rows[..., None] >> shifts) & (2**depth - 1)).reshape(len(rows), -1).astype(int)


def _colors(
    samples: np.ndarray[Any, Any], color: int, depth: int, others: dict[bytes, bytes]
) -> np.ndarray[Any, Any]:
    white = 2**depth - 1
    transparent = others.get(b"tRNS")
    alpha = np.ones(samples.shape[:2])
    if color == 3:
        palette = np.frombuffer(others.get(b"PLTE", b""), np.uint8).reshape(-1, 3)
        if samples.max() >= len(palette):
            raise ValueError("a color that the palette lacks")
        found = palette[samples[..., 0]] / 255
        if transparent is not None:
            alphas = np.frombuffer(transparent.ljust(len(palette), b"\xff"), np.uint8)
            alpha = alphas[samples[..., 0]] / 255
    else:
        n_colors = 1 if color in (0, 4) else 3
        found = np.broadcast_to(samples[..., :n_colors] / white, (*alpha.shape, 3))
        if color in (4, 6):
            alpha = samples[..., -1] / white
        elif transparent is not None:
            value = np.frombuffer(transparent, ">u2").astype(int)
            if value.max() > white:
                raise ValueError("a transparent value that no pixel can have")
            alpha = 1.0 - (samples == value).all(axis=-1)
    return found * alpha[..., None] + 1 - alpha[..., None]
