"""The bytes of a model file: one safetensors file whose header holds a JSON text.

Named tensors are stored as safetensors does. Its header, ``__metadata__``, has the single key
`KEY`: a JSON object with ``format_version``, ``sha256``, ``written_by``, ``n_bytes`` and whatever
else the caller stores. The digest is that of the whole file with the 64 digits of the digest itself
set to 0, so that there is no byte which it does not cover. Nothing here imports torch before
tensors are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from skanomaly_vit._utils.files import write_atomically
from skanomaly_vit._utils.version import __version__
from skanomaly_vit.exceptions import ModelFileError

if TYPE_CHECKING:
    import torch


KEY = "skanomaly_vit"

FORMAT_VERSION = 3

#: Bytes of the header, at most: what claims to have a longer one is refused unread.
HEADER_LIMIT = 32 * 2**20

_LENGTH = 8  # bytes that hold the length of the header

_NO_DIGEST = "0" * 64

_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')  # a JSON text in a JSON text

_BLOCK = 2**20

_EXPECTED = "expected a file that TransformalyDetector.save or `skanomaly fit` wrote"


def write(path: Path, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write values that JSON has, and contiguous tensors on the CPU, into one file.

    Raises
    ------
    ValueError
        If the values take more than `HEADER_LIMIT`.
    OSError
        If the file cannot be written; the one that was there is there still.
    """
    from safetensors.torch import save

    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "sha256": _NO_DIGEST,
            "written_by": f"skanomaly-vit {__version__}",
            "n_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            **values,
        },
        allow_nan=False,
    )
    content = bytearray(save(dict(tensors), metadata={KEY: text}))
    body = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if body > HEADER_LIMIT:
        raise ValueError(
            f"what is not in tensors (parameters, names of columns) takes {body} bytes of the "
            f"file's header; at most {HEADER_LIMIT} fit"
        )
    start = content.index(_NO_DIGEST.encode())
    content[start : start + len(_NO_DIGEST)] = hashlib.sha256(content).hexdigest().encode("ascii")
    write_atomically(content, path)


def read_values(path: str) -> dict[str, Any]:
    """The values of a file, after all of the file has been checked.

    Raises
    ------
    ModelFileError
        If the file is not as `write` left it.
    """
    return _read(path, lambda block: None)[0]


def read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    """The values and tensors of a file, and the version of its format.

    Raises
    ------
    ModelFileError
        If the file is not as `write` left it.
    """
    blocks: list[bytes] = []
    values, version = _read(path, blocks.append)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return values, load(b"".join(blocks)), version
    except (SafetensorError, KeyError, ValueError, RuntimeError, MemoryError) as error:
        raise refusal(path, f"its tensors cannot be read ({error})") from error


def refusal(path: str, cause: str) -> ModelFileError:
    """The error for a file that is not taken."""
    error = ModelFileError(f"{path!r} cannot be loaded as a model: {cause}")
    error.cause = cause
    return error


def check_regular(path: str) -> os.stat_result:
    """Facts about a file. What is none is refused: opening a pipe would wait for a writer."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise refusal(path, "it is a directory" if os.path.isdir(path) else "it is no regular file")
    return found


def check_version(path: str, values: dict[str, Any], newest: int, expected: str) -> int:
    """Take the version of its format out of what a file says, and refuse one beyond `newest`."""
    version, writer = values.pop("format_version", None), values.pop("written_by", None)
    if type(version) is not int or version < 1:
        raise refusal(path, f"its format_version is {version!r}; {expected}")
    if version > newest:
        raise refusal(
            path,
            f"it has format {version}, written by {writer}; skanomaly-vit {__version__}, which is "
            f"installed here, reads formats up to {newest}. Install a newer skanomaly-vit.",
        )
    return version


def _read(path: str, keep: Callable[[bytes], None]) -> tuple[dict[str, Any], int]:
    """Check a file as a whole, handing on its bytes as they were checked."""
    try:
        check_regular(path)
        with open(path, "rb") as stream:
            head = _read_head(path, stream)
            values = _parse(path, head)
            version = check_version(path, values, FORMAT_VERSION, _EXPECTED)
            keep(head)
            _check_body(path, stream, head, values, keep)
    except (OSError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise refusal(path, cause) from error
    return values, version


def _read_head(path: str, stream: BinaryIO) -> bytes:
    """The length of the header, and the header."""
    n_there = os.fstat(stream.fileno()).st_size
    start = stream.read(_LENGTH + 1)
    if not start:
        raise refusal(path, "it is empty")
    length = int.from_bytes(start[:_LENGTH], "little")
    if start[_LENGTH:] != b"{":  # nor is a pickle, a zip archive, a text...
        raise refusal(path, f"it is another kind of file; {_EXPECTED}")
    if length > HEADER_LIMIT:
        raise refusal(path, f"its header claims {length} bytes; at most {HEADER_LIMIT} are read")
    if _LENGTH + length > n_there:
        raise refusal(path, f"it is cut off: its header has {length} bytes, the file {n_there}")
    return start + stream.read(length - 1)


def _parse(path: str, head: bytes) -> dict[str, Any]:
    try:
        header = json.loads(head[_LENGTH:])
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"its header is no JSON ({error}); {_EXPECTED}") from error
    text = header["__metadata__"].get(KEY) if _is_metadata(header) else None
    if not isinstance(text, str):
        raise refusal(
            path,
            "it is a safetensors file, but no model: weights of a backbone are for the parameter "
            f"`pretrained`; {_EXPECTED}",
        )
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"its values are no JSON ({error}); it is damaged") from error
    if not isinstance(values, dict):
        raise refusal(path, f"its values are no JSON object; {_EXPECTED}")
    return values


def _is_metadata(header: Any) -> bool:
    return isinstance(header, dict) and isinstance(header.get("__metadata__"), dict)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_body(
    path: str,
    stream: BinaryIO,
    head: bytes,
    values: dict[str, Any],
    keep: Callable[[bytes], None],
) -> None:
    n_bytes, n_there = values.pop("n_bytes", None), os.fstat(stream.fileno()).st_size
    stated = values.pop("sha256", None)
    span = _find_digest(head)
    if type(n_bytes) is not int or span is None or stated != head[slice(*span)].decode("ascii"):
        raise refusal(path, "its header lacks a size or a checksum; it is damaged")
    if n_there != len(head) + n_bytes:
        cut = "cut off" if n_there < len(head) + n_bytes else "too long"
        raise refusal(path, f"it is {cut}: {n_there} bytes in place of {len(head) + n_bytes}")
    digest = hashlib.sha256(head[: span[0]] + _NO_DIGEST.encode() + head[span[1] :])
    for block in iter(functools.partial(stream.read, _BLOCK), b""):
        digest.update(block)
        keep(block)
    if digest.hexdigest() != stated:
        raise refusal(
            path,
            "its content does not have the checksum that it was written with: it was damaged or "
            "changed since. Copy it again from where it came from.",
        )


def _find_digest(head: bytes | bytearray) -> tuple[int, int] | None:
    """Where the digits of the digest stand."""
    found = _DIGEST.search(head)  # the first: the key stands in front of what users have named
    return found.span(1) if found else None
