"""PNG files: checksums, and data that fill the declared image exactly; Pillow checks neither."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from skanomaly_vit._images.remarks import remark

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Critical chunks, without which a file cannot be read.
_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")

_INDEXED = 3  # the type of color that takes a palette

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by type of color

#: Passes of an interlaced image: first column and row, steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip

_STEP = 2**16  # bytes that are inflated at a time

#: Color space of a cICP chunk: primaries, transfer, matrix and range of sRGB.
_SRGB = bytes([1, 13, 0, 1])


def check_png(stream: IO[bytes]) -> None:
    """Check the chunks of a file, and that its data are those of the image that it declares.

    Raises
    ------
    ValueError
        If a checksum is wrong, a chunk is cut off, unknown and critical, or missing, or there are
        more or fewer data than the size, depth and type in the header make.
    """
    data: _Data | None = None
    seen: set[bytes] = set()
    for name, content in _chunks(stream):
        seen.add(name)
        if (name == b"IHDR") != (data is None):
            raise ValueError(f"broken PNG file: chunk {_shown(name)} is out of place")
        if name == b"IHDR":
            data = _Data(_size_of_data(content))
            white = 2 ** content[8] - 1
            needed = {b"IDAT", b"PLTE"} if content[9] == _INDEXED else {b"IDAT"}
        elif name == b"IDAT" and data is not None:
            data.add(content)
        elif name == b"cICP" and content != _SRGB:
            remark("the file names a colour space (cICP), which is left out: sRGB is read")
        elif name == b"tRNS" and needed == {b"IDAT"} and max(_values(content)) > white:
            raise ValueError(f"broken PNG file: a value above {white} is transparent")
        elif name not in _KNOWN and name[0] < ord("a"):
            raise ValueError(f"broken PNG file: the critical chunk {_shown(name)} is unknown")
    if data is not None:
        for name in needed - seen:
            raise ValueError(f"broken PNG file: it has no chunk {_shown(name)}")
        data.check_complete()


def _shown(name: bytes) -> str:
    return repr(name)[1:]  # without b


def _values(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(content) // 2}H", content[: len(content) // 2 * 2]) or (0,)


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    stream.seek(len(_SIGNATURE))
    name = b""
    while name != b"IEND":
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("broken PNG file: it is cut off")
        length, name = struct.unpack(">I4s", head)
        content, checksum = stream.read(length), stream.read(4)
        if len(checksum) < 4:
            raise ValueError(f"broken PNG file: chunk {_shown(name)} is cut off")
        if zlib.crc32(name + content) != int.from_bytes(checksum, "big"):
            raise ValueError(f"broken PNG file: chunk {_shown(name)} has a wrong checksum")
        yield name, content


def _size_of_data(header: bytes) -> int:
    """Bytes of all rows, each with its filter, before they were deflated."""
    width, height, depth, color, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _SAMPLES[color]
    passes = _PASSES if is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += max(0, rows) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total


class _Data:
    """Inflates data, and counts them without keeping them."""

    def __init__(self, size: int) -> None:
        self._size, self._found = size, 0
        self._inflating = zlib.decompressobj()

    def add(self, part: bytes) -> None:
        while part and not self._inflating.eof and self._found <= self._size:
            try:
                self._found += len(self._inflating.decompress(part, _STEP))
            except zlib.error as error:
                raise ValueError(f"broken PNG file: {error}") from error
            part = self._inflating.unconsumed_tail

    def check_complete(self) -> None:
        if self._found <= self._size and not self._inflating.eof:
            self._found += len(self._inflating.flush())
        if self._found != self._size or not self._inflating.eof:
            found = f"{self._found}{' or more' if self._found > self._size else ''}"
            raise ValueError(
                f"broken PNG file: its header declares {self._size} bytes of pixels, and its data "
                f"are {found}{'' if self._inflating.eof else ', without an end'}"
            )
