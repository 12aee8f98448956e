"""ONNX files with changes that their checksum does not betray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from skanomaly_vit.onnx import _file


def rewritten(path: Path, change: Callable[[Any, dict[str, Any]], Any]) -> bytes:
    """The bytes of a file after a change of its graph or metadata, with a checksum that fits."""
    proto = onnx.load(path)
    (entry,) = proto.metadata_props
    values = json.loads(entry.value)
    del proto.metadata_props[:]
    change(proto, values)
    fields = ("format_version", "sha256", "written_by")
    kept = {name: value for name, value in values.items() if name not in fields}
    target = path.parent / "rewritten.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_file, "format_of", lambda _: values["format_version"])
        _file.write(target, proto, kept)
    return target.read_bytes()
