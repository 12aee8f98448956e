"""ONNX files as bytes: a graph, and a JSON text in its metadata.

The text, under the key `KEY`, describes preprocessing, threshold and outputs. Its ``sha256`` is the
digest of the whole file with zeros in place of its own 64 digits. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._utils.files import write_atomically
from skanomaly_vit._utils.version import __version__
from skanomaly_vit.onnx._fixtures import check_fixtures
from skanomaly_vit.onnx._framing import framing_of
from skanomaly_vit.persistence._container import check_regular, check_version, refusal

KEY = "skanomaly_vit"

#: The newest format. Files of detectors that frame images, or take regions, are of format 2, which
#: older versions refuse: they would score whole images. All others stay of format 1.
FORMAT_VERSION = 2

#: Names of the graph's input and of all its possible outputs.
PIXELS = "pixels"

SCORE, DECISION, P_VALUE, MAP = "score", "decision", "p_value", "anomaly_map"

OUTPUTS = (SCORE, DECISION, P_VALUE, MAP)

#: Bytes of a file, at most: the limit of protocol buffers.
LARGEST_FILE = 2**31 - 1

#: Pixels of a side, at most, so that a forged size cannot exhaust memory.
_LARGEST_SIDE = 8192

_NO_DIGEST = "0" * 64

_DIGEST = re.compile(rb'"sha256": "([0-9a-f]{64})"')

_EXPECTED = "expected a file that skanomaly_vit.onnx.export_onnx or `skanomaly export` wrote"

#: Key -> type of each entry of the text.
_CONTENT: dict[str, type | tuple[type, ...]] = {
    "created": str,
    "versions": dict,
    "backbone": str,
    "backbone_fingerprint": str,
    "preprocessing": dict,
    "image_shape": (list, type(None)),
    "threshold": (int, float),
    "n_calibrating": int,
    "map_method": (str, type(None)),
    "outputs": dict,
    # Not in files of older versions:
    "false_alarm_rate": (int, float, type(None)),
    "quantization": (str, type(None)),
    "noise": (int, float, type(None)),
    "framing": (dict, type(None)),
    "takes_regions": (bool, type(None)),
}


def require(package: str) -> Any:
    """A package of the extra ``onnx``; an ImportError names the command that installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"ONNX models need the package {package}, which cannot be imported ({error}): "
            "pip install 'skanomaly-vit[onnx]'"
        ) from error


def write(path: Path, proto: Any, values: Mapping[str, Any]) -> None:
    """Write a ``ModelProto`` with these values in its metadata into one file."""
    text = json.dumps(
        {
            "format_version": format_of(values),
            "sha256": _NO_DIGEST,
            "written_by": f"skanomaly-vit {__version__}",
            **values,
        },
        allow_nan=False,
    )
    proto.producer_name, proto.producer_version = "skanomaly-vit", __version__
    proto.metadata_props.add(key=KEY, value=text)
    content = bytearray(proto.SerializeToString())
    start = _digest_span(content)[0]
    content[start : start + len(_NO_DIGEST)] = hashlib.sha256(content).hexdigest().encode("ascii")
    write_atomically(content, path)


def format_of(values: Mapping[str, Any]) -> int:
    """The lowest format that a reader of these values has to know."""
    return FORMAT_VERSION if values["framing"] or values["takes_regions"] else 1


def n_channels(values: Mapping[str, Any]) -> int:
    """Channels of the input: a fourth one says which pixels count."""
    return 4 if values["takes_regions"] else 3


def read(path: str) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes, and the values in its metadata, after a check of the whole file.

    Raises
    ------
    ModelFileError
        If the file is damaged, newer, of another kind, or refers to other files.
    """
    content = _read_bytes(path)
    proto = _parse(path, content)
    values = _read_values(path, proto)
    _check_digest(path, content, values)
    values = dict.fromkeys(_CONTENT) | values
    for message in _messages(proto):
        if message.DESCRIPTOR.name == "TensorProto" and (
            message.data_location or message.external_data
        ):
            raise refusal(
                path, "it refers to weights in another file; pass one file that holds all"
            )
    _check_values(path, values)
    _check_ends(path, proto.graph, values)
    return content, values


def preprocessing_of(values: Mapping[str, Any]) -> Preprocessing:
    """The format of the pixels; a ValueError, TypeError or KeyError if there is no valid one."""
    found = values["preprocessing"]
    height, width = found["image_size"]
    mean, std = ([float(value) for value in found[name]] for name in ("mean", "std"))
    if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} are not those of three channels")
    if not all(type(side) is int and side <= _LARGEST_SIDE for side in (height, width)):
        raise ValueError(f"its images have {height} x {width} pixels")
    return Preprocessing(
        (height, width), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]),
        found["interpolation"],
    )  # fmt: skip


def _read_bytes(path: str) -> bytes:
    try:
        size = check_regular(path).st_size
        if not size:
            raise refusal(path, "it is empty")
        if size > LARGEST_FILE:
            raise refusal(path, f"it has {size} bytes; at most {LARGEST_FILE} are read")
        with open(path, "rb") as stream:
            return stream.read()
    except (OSError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise refusal(path, cause) from error


def _parse(path: str, content: bytes) -> Any:
    onnx = require("onnx")
    try:
        return onnx.ModelProto.FromString(content)
    # protobuf's own error; its package is not one of ours.
    except Exception as error:
        raise refusal(
            path, f"it is cut off, damaged or another kind of file ({error}); {_EXPECTED}"
        ) from error


def _read_values(path: str, proto: Any) -> dict[str, Any]:
    texts = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    if len(texts) != 1:
        what = "an ONNX model of another program" if proto.graph.node else "another kind of file"
        raise refusal(path, f"it is {what}; {_EXPECTED}")
    try:
        values = json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"its metadata is no JSON ({error}); it is damaged") from error
    if not isinstance(values, dict):
        raise refusal(path, f"its metadata is no JSON object; {_EXPECTED}")
    check_version(path, values, FORMAT_VERSION, _EXPECTED)
    return values


def _digest_span(content: bytes | bytearray) -> tuple[int, int]:
    """Span of the digits of the digest. The last match, since metadata follow the graph."""
    spans = [found.span(1) for found in _DIGEST.finditer(content)]
    return spans[-1] if spans else (0, 0)


def _check_digest(path: str, content: bytes, values: dict[str, Any]) -> None:
    stated, (start, stop) = values.pop("sha256", None), _digest_span(content)
    digest = hashlib.sha256(content[:start])
    digest.update(_NO_DIGEST.encode())
    digest.update(memoryview(content)[stop:])
    if stated != digest.hexdigest():
        raise refusal(
            path,
            "its content does not have the checksum that it was written with: it was damaged or "
            "changed since. Copy it again from where it came from, or export it again.",
        )


def _messages(message: Any) -> Iterator[Any]:
    """A protocol buffer and all buffers inside it, nested graphs included."""
    stack = [message]
    while stack:
        found = stack.pop()
        yield found
        for field, value in found.ListFields():
            if field.message_type is not None:
                stack.extend([value] if hasattr(value, "ListFields") else value)


def _check_values(path: str, values: dict[str, Any]) -> None:
    for key, kind in _CONTENT.items():
        if not isinstance(values[key], kind):
            raise refusal(path, f"its metadata has no {key}; {_EXPECTED}")
    if not math.isfinite(values["threshold"]):
        raise refusal(path, f"its threshold is {values['threshold']}")
    try:
        preprocessing_of(values)
    except (ValueError, TypeError, KeyError) as error:
        raise refusal(path, f"it describes no preprocessing of images ({error})") from error
    try:
        framing = framing_of(values)
    except (ValueError, TypeError, KeyError) as error:
        raise refusal(path, f"its framing of images is damaged ({error})") from error
    if not framing.counts_all and not values["takes_regions"]:
        raise refusal(path, "its graph takes no regions, and its framing has some")
    if "fixtures" in values:  # not in older files
        try:
            check_fixtures(values["fixtures"])
        except (ValueError, TypeError, KeyError) as error:
            raise refusal(path, f"its fixtures are damaged ({error})") from error


def _check_ends(path: str, graph: Any, values: dict[str, Any]) -> None:
    """Reject a graph whose input or outputs differ from the metadata."""
    outputs = [output.name for output in graph.output]
    promised = list(values["outputs"])
    if outputs != promised or not {SCORE, DECISION} <= set(outputs) <= set(OUTPUTS):
        raise refusal(path, f"it gives {', '.join(outputs) or 'nothing'}; {_EXPECTED}")
    weights = {weight.name for weight in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    height, width = values["preprocessing"]["image_size"]
    shapes = [[side.dim_value for side in i.type.tensor_type.shape.dim] for i in inputs]
    n = n_channels(values)
    if [each.name for each in inputs] != [PIXELS] or shapes != [[0, n, height, width]]:
        raise refusal(path, f"it does not take pixels of shape (n, {n}, {height}, {width})")
