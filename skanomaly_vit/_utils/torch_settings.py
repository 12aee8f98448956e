"""Settings of torch that change the bits of results, and the same ones in another process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch

from skanomaly_vit._utils.shared_context import SharedContext

#: Values by name; those of a setting that this version of torch lacks are None.
Settings: TypeAlias = Mapping[str, Any]

#: Flags by the place under ``torch.backends`` where they are read and set.
_FLAGS = (
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
    "cudnn.enabled",
    "cudnn.allow_tf32",
    "cudnn.deterministic",
    "cudnn.benchmark",
    "mkldnn.enabled",
)

#: Precisions that newer versions of torch have in place of, or beside, these flags.
_PRECISIONS = (
    "cuda.matmul.fp32_precision",
    "cudnn.conv.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "fp32_precision",
)

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")

_LOWER = ("tf32", "bf16")

_DEVICES = ("cpu", "cuda")


def settings_here() -> Settings:
    """All settings of torch that change results, of this process and thread."""
    found: dict[str, Any] = {
        "float32_matmul_precision": _read(torch.get_float32_matmul_precision),
        "default_dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    for name in (*_FLAGS, *_PRECISIONS):
        found[name] = _read(lambda name=name: _get(name))
    for kind in _ATTENTION:
        found[f"{kind}_sdp"] = _read(
            lambda kind=kind: getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()
        )
    for device in _DEVICES:
        found[f"autocast {device}"] = _autocast_of(device)
    return found


def named(values: Sequence[Any]) -> Settings:
    """Settings of which another process has sent the values alone."""
    return dict(zip(settings_here(), values, strict=True))


def described(settings: Settings) -> list[str]:
    """Settings as texts, in the order of their names."""
    is_plain = settings["fp32_precision"] in ("none", None)  # what "none" means elsewhere
    alike = {"none": "ieee"} if is_plain else {}
    return [f"{name}={alike.get(value, value)}" for name, value in sorted(settings.items())]


@contextmanager
def under(settings: Settings) -> Iterator[None]:
    """Run under settings that another process or thread has sent."""
    before = settings_here()
    with autocast_of(settings):
        if _shared(settings) == _shared(before):
            yield
            return
        _apply(settings)
        try:
            _require(settings)
            yield
        finally:
            _apply(before)


@contextmanager
def autocast_of(settings: Settings) -> Iterator[None]:
    """Run under autocast where the thread that has sent the settings does."""
    with ExitStack() as stack:
        for device in _DEVICES:
            wanted = settings[f"autocast {device}"]
            if wanted != _autocast_of(device):
                context = torch.autocast(device, dtype=wanted or None, enabled=bool(wanted))
                stack.enter_context(context)
        yield


def _shared(settings: Settings) -> dict[str, Any]:
    """Those of the whole process; autocast is a thread's."""
    return {name: value for name, value in settings.items() if not name.startswith("autocast")}


def _apply(settings: Settings) -> None:
    now = settings_here()
    wanted = {name: value for name, value in settings.items() if value is not None}
    if wanted.get("default_dtype", now["default_dtype"]) != now["default_dtype"]:
        torch.set_default_dtype(wanted["default_dtype"])
    if wanted.get("deterministic", now["deterministic"]) != now["deterministic"]:
        torch.use_deterministic_algorithms(wanted["deterministic"])
    precision = wanted.get("float32_matmul_precision")
    if precision is not None and now["float32_matmul_precision"] != precision:
        torch.set_float32_matmul_precision(precision)
    for name in (*_FLAGS, *_PRECISIONS):
        if name in wanted and _read(lambda name=name: _get(name)) != wanted[name]:
            _set(name, wanted[name])
    for kind in _ATTENTION:
        name = f"{kind}_sdp"
        if name in wanted and now[name] != wanted[name]:
            getattr(torch.backends.cuda, f"enable_{kind}_sdp")(wanted[name])


def _require(settings: Settings) -> None:
    now = settings_here()
    other = [
        f"{name} ({now[name]} here, {value} where it was sent from)"
        for name, value in _shared(settings).items()
        if now[name] != value
    ]
    if other:
        raise ValueError(
            f"A worker cannot take the settings of torch that it was sent: {', '.join(other)}. "
            "Use the same version of torch there, or its default settings here."
        )


def _autocast_of(device: str) -> torch.dtype | bool:
    """The type of autocast; False where it is off."""
    enabled = _read(lambda: torch.is_autocast_enabled(device))
    return torch.get_autocast_dtype(device) if enabled else False


def _read(read: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except (AttributeError, RuntimeError):  # torch refuses to read old flags beside new ones
            return None


def _get(name: str) -> Any:
    owner, flag = _owner(name)
    return getattr(owner, flag)


def _set(name: str, value: Any) -> None:
    owner, flag = _owner(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(owner, flag, value)


def _owner(name: str) -> tuple[Any, str]:
    path, _, flag = name.rpartition(".")
    owner: Any = torch.backends
    for part in path.split(".") if path else ():
        owner = getattr(owner, part)
    return owner, flag


@contextmanager
def _full_precision() -> Iterator[None]:
    before = settings_here()
    if before["float32_matmul_precision"] is None:  # set by the names of newer versions
        wanted: dict[str, Any] = {name: "ieee" for name in _PRECISIONS if before[name] in _LOWER}
    else:
        wanted = {"float32_matmul_precision": "highest"}
        if torch.cuda.is_available() and before["cudnn.allow_tf32"]:
            wanted["cudnn.allow_tf32"] = False
    if all(before[name] == value for name, value in wanted.items()):
        yield
        return
    _apply(wanted)
    try:
        yield
    finally:
        _apply(before)


_fully_precise = SharedContext(_full_precision)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run without autocast, and without matrix products of lower precision."""
    with _fully_precise(), torch.autocast(device.type, enabled=False):
        yield
