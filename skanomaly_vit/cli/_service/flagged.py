"""Flagged files, copied or linked into a folder of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from skanomaly_vit._utils.files import replacing

#: Called with the path of a file below the watched folder, its whole path, and its content.
Keep = Callable[[str, str, bytes], None]


def copier(folder: str) -> Keep:
    """Copies a file to the same path below `folder`: once, whatever the number of calls."""

    def keep(name: str, source: str, content: bytes) -> None:
        target = Path(folder, name)
        if target.exists():
            if target.read_bytes() == content:
                return
            # The name was used again for another image.
            digest = hashlib.sha256(content).hexdigest()[:12]
            target = target.with_name(f"{target.stem}-{digest}{target.suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as stream:
            stream.write(content)

    return keep


def linker(folder: str) -> Keep:
    """Makes a symbolic link to a file at the same path below `folder`."""

    def keep(name: str, source: str, content: bytes) -> None:
        target = Path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        aim = os.path.abspath(source)
        if target.is_symlink() and os.readlink(target) == aim:
            return
        target.symlink_to(aim)

    return keep
