"""Digests of several values together."""

from __future__ import annotations

import hashlib


def combine(*parts: object) -> bytes:
    """SHA-256 of a sequence of texts, numbers and digests, in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(data)}\n".encode() + data)
    return digest.digest()
