"""JPEG files whose data end before the image does; Pillow fills the rest with grey."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from skanomaly_vit._images.remarks import remark

#: A marker behind the data of a scan; stuffed bytes, restarts and fill bytes belong to the data.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

_FRAMES = (0xC0, 0xC1, 0xC2)  # coded by Huffman: baseline, extended, progressive
_PROGRESSIVE, _START_OF_SCAN, _END = 0xC2, 0xDA, 0xD9

#: Eight bytes of ones, which are no code of any table. A decoder reads as far ahead, and no further
#: if the image is complete.
_NO_CODE = b"\xff\x00" * 8


def require_all_data(data: bytes) -> bytes:
    """Return a file whose decoding fails if its data end before the image.

    A decoder that meets the end marker too early fills the rest with grey. Without that marker it
    asks for more data, and Pillow raises. Scans that a progressive file lacks are remarked. Files
    of other kinds come back as they are. The last two blocks (8 x 8 pixels) may be missing.
    """
    try:
        layout = _read_layout(data)
    except (IndexError, struct.error):
        return data  # Pillow says what is wrong
    if layout.frame == _PROGRESSIVE:
        if layout.lacks_scans:
            remark(
                "a progressive JPEG that ends before its last scans, and is blurred; it may be cut "
                "off"
            )
        return data
    if layout.frame is None or len(layout.scans) != 1 or data[layout.end + 1] != _END:
        return data
    return data[: layout.end] + _NO_CODE


@dataclass
class _Layout:
    frame: int | None = None
    components: tuple[int, ...] = ()
    end: int = 0  # of the last scan
    scans: list[bytes] = field(default_factory=list)

    @property
    def lacks_scans(self) -> bool:
        """Whether a coefficient of a component was not sent to its last bit."""
        missing = dict.fromkeys(self.components, 2**64 - 1)
        for scan in self.scans:
            n = scan[0]
            first, last, bits = scan[1 + 2 * n : 4 + 2 * n]
            if bits & 15:
                continue
            sent = (2 ** (last + 1) - 1) & ~(2**first - 1)
            for component in scan[1 : 1 + 2 * n : 2]:
                missing[component] = missing.get(component, 0) & ~sent
        return any(missing.values())


def _read_layout(data: bytes) -> _Layout:
    layout, at = _Layout(), 2
    while data[at + 1] != _END:
        if data[at] != 0xFF:
            raise IndexError(at)
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        content = data[at + 4 : at + 2 + length]
        at += 2 + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            layout.frame = marker if marker in _FRAMES else None
            layout.components = tuple(content[6 : 6 + 3 * content[5] : 3])
        if marker == _START_OF_SCAN:
            layout.scans.append(content)
            found = _END_OF_SCAN.search(data, at)
            if found is None:
                raise IndexError(at)
            layout.end = at = found.start()
    return layout
