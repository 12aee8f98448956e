"""Digests of images: 32 bytes of their content."""

from __future__ import annotations

import functools
import hashlib
import os
import time

import numpy as np

from skanomaly_vit._images.decoding import Item, decode_image
from skanomaly_vit._images.pillow_rules import MAX_PIXELS

#: Nanoseconds within which time stamps of a file cannot tell two changes apart.
_STAMP_RESOLUTION = 2 * 10**9


def digest_image(item: Item, max_pixels: int | None = MAX_PIXELS) -> bytes:
    """SHA-256 of a file's bytes, or of the pixels of an image in memory.

    Parameters
    ----------
    item : str, bytes, PIL.Image.Image, ndarray or torch.Tensor
    max_pixels : int or None, default=2**27
        As in `decode_image`.

    Returns
    -------
    digest : bytes
        32 bytes.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    if isinstance(item, str):
        return _digest_file(item)
    if isinstance(item, bytes):
        return hashlib.sha256(item).digest()
    pixels = np.ascontiguousarray(decode_image(item, max_pixels))
    digest = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}\n".encode())
    digest.update(pixels.data)
    return digest.digest()


def _digest_file(path: str) -> bytes:
    stamp = os.stat(path)
    # Nobody can set ctime, the last change of the inode, unlike mtime. On Windows ctime is the
    # creation of the file, so mtime counts too.
    times = (stamp.st_ctime_ns, stamp.st_mtime_ns)
    identity = (*times, stamp.st_size, stamp.st_ino, stamp.st_dev)
    settled = time.time_ns() - max(times) > _STAMP_RESOLUTION
    read = _read_digest if settled else _read_digest.__wrapped__
    return read(path, identity)


@functools.lru_cache(maxsize=2**17)
def _read_digest(path: str, identity: tuple[int, ...]) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
