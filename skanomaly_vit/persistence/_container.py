"""Model files as bytes: one safetensors file whose header holds a JSON text.

safetensors stores the named tensors. Its header, ``__metadata__``, has the single key `KEY`: a
JSON object with ``sha256``, ``format_version``, ``written_by``, ``n_bytes`` (of all tensors) and
the caller's values. The digest covers all other values, and name, dtype, shape and bytes of every
tensor. Nothing here imports torch until a caller writes or reads tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from skanomaly_vit._utils.files import write_atomically
from skanomaly_vit._utils.version import __version__
from skanomaly_vit.exceptions import ModelFileError

if TYPE_CHECKING:
    import torch


KEY = "skanomaly_vit"

FORMAT_VERSION = 4

#: Bytes of the header, at most; readers reject longer ones unread.
HEADER_LIMIT = 32 * 2**20

_LENGTH = 8  # bytes that hold the length of the header

_EXPECTED = "expected a file that TransformalyDetector.save or `skanomaly fit` wrote"


def write(path: Path, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write values that JSON has, and contiguous tensors on the CPU, into one file.

    Raises
    ------
    ValueError
        If the values take more than `HEADER_LIMIT`.
    OSError
        If the file cannot be written; an older one stays.
    """
    from safetensors.torch import save

    signed = {
        "format_version": FORMAT_VERSION,
        "written_by": f"skanomaly-vit {__version__}",
        "n_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        **values,
    }
    digest = _digest(signed, save(dict(tensors)))
    text = json.dumps({"sha256": digest, **signed}, allow_nan=False)
    content = save(dict(tensors), metadata={KEY: text})
    body = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if body > HEADER_LIMIT:
        raise ValueError(
            f"parameters, names of columns and other values outside tensors take {body} bytes of "
            f"the file's header; at most {HEADER_LIMIT} fit"
        )
    write_atomically(content, path)


def read_values(path: str) -> dict[str, Any]:
    """The values of a file, after a check of the whole file.

    Raises
    ------
    ModelFileError
        If the file is damaged, newer, or of another kind.
    """
    return _read(path)[0]


def read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    """The values and tensors of a file, and the version of its format.

    Raises
    ------
    ModelFileError
        If the file is damaged, newer, or of another kind.
    """
    values, version, content = _read(path)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return values, load(content), version
    except (SafetensorError, KeyError, ValueError, RuntimeError, MemoryError) as error:
        raise refusal(path, f"its tensors cannot be read ({error})") from error


def refusal(path: str, cause: str) -> ModelFileError:
    """The error for a file that cannot be loaded."""
    error = ModelFileError(f"{path!r} cannot be loaded as a model: {cause}")
    error.cause = cause
    return error


def check_regular(path: str) -> os.stat_result:
    """Facts about a file; rejects pipes, which would make `open` wait for a writer."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise refusal(path, "it is a directory" if os.path.isdir(path) else "it is no regular file")
    return found


def check_version(path: str, values: dict[str, Any], newest: int, expected: str) -> int:
    """Remove the version of the format from a file's values; reject one beyond `newest`."""
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


def _read(path: str) -> tuple[dict[str, Any], int, bytes]:
    """Values, version of the format and bytes of a file, after a check of the whole file."""
    from safetensors import SafetensorError

    try:
        check_regular(path)
        with open(path, "rb") as stream:
            head = _read_head(path, stream)
            values = _parse(path, head)
            stated = values.pop("sha256", None)
            signed = dict(values)
            version = check_version(path, values, FORMAT_VERSION, _EXPECTED)
            _check_size(path, stream, head, values.pop("n_bytes", None))
            content = head + stream.read()
        is_old = version < 3
        digest = _digest_of_file(content, stated) if is_old else _digest(signed, content)
    except (OSError, MemoryError, RecursionError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise refusal(path, cause) from error
    if digest != stated:
        raise refusal(
            path,
            "its content does not have the checksum that it was written with: it was damaged or "
            "changed since. Copy it again from where it came from.",
        )
    return values, version, content


def _read_head(path: str, stream: BinaryIO) -> bytes:
    """The length of the header, and the header."""
    n_there = os.fstat(stream.fileno()).st_size
    start = stream.read(_LENGTH + 1)
    if not start:
        raise refusal(path, "it is empty")
    length = int.from_bytes(start[:_LENGTH], "little")
    if start[_LENGTH:] != b"{":  # nor is a pickle, a zip archive, a text...
        kind = _kind_of(start, path)
        raise refusal(path, f"it is another kind of file{kind}; {_EXPECTED}")
    if length > HEADER_LIMIT:
        raise refusal(path, f"its header claims {length} bytes; at most {HEADER_LIMIT} are read")
    if _LENGTH + length > n_there:
        raise refusal(path, f"it is cut off: its header has {length} bytes, the file {n_there}")
    return start + stream.read(length - 1)


#: How other kinds of files begin, and what they are.
_KINDS = (
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*"), "an image"),
    ((b"PK\x03\x04",), "a zip archive, as torch.save writes"),
    (tuple(bytes([0x80, protocol]) for protocol in range(2, 6)), "a pickle, which was not run"),
)


def _kind_of(start: bytes, path: str) -> str:
    if path.lower().endswith(".onnx"):  # protocol buffers have no mark of their own
        return ", an ONNX file, which skanomaly_vit.onnx.OnnxDetector reads"
    found = [name for starts, name in _KINDS if start.startswith(starts)]
    return f", {found[0]}" if found else ""


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


def _check_size(path: str, stream: BinaryIO, head: bytes, n_bytes: Any) -> None:
    """Reject a file that ends before its tensors do, or after them."""
    if type(n_bytes) is not int:
        raise refusal(path, "its header lacks a size; it is damaged")
    n_there = os.fstat(stream.fileno()).st_size
    if n_there != len(head) + n_bytes:
        cut = "cut off" if n_there < len(head) + n_bytes else "too long"
        raise refusal(path, f"it is {cut}: {n_there} bytes in place of {len(head) + n_bytes}")


def _digest(values: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 of JSON values in their order, and of a file's tensors in the order of their names.

    It depends neither on the order of the tensors in the file nor on the rest of the header.
    """
    from safetensors import deserialize

    digest = hashlib.sha256(json.dumps(values).encode("ascii"))
    for name, tensor in sorted(deserialize(content)):
        digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode("ascii"))
        digest.update(tensor["data"])
    return digest.hexdigest()


def _digest_of_file(content: bytes, stated: Any) -> str:
    """The digest of formats 1 and 2: of the whole file, with zeros in place of its own digits."""
    text = '\\"sha256\\": \\"{}\\"'.format  # a JSON text in a JSON text
    zeros = text("0" * 64).encode("ascii")
    return hashlib.sha256(content.replace(text(stated).encode(), zeros, 1)).hexdigest()
