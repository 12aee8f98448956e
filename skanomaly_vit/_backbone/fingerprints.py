"""Fingerprints of networks: a text that two networks share only if they give the same."""

from __future__ import annotations

import base64
import functools
import hashlib
import inspect
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

#: Fingerprints without it are those of model files of formats 1 to 3: class, weights, input format.
PREFIX = "2:"

# Three rules, since no one of them does it:
# - The strict digest covers every plain attribute of every module. A later timm or torch may name
#   or add attributes as it likes, and another processor rounds tables of sines otherwise, so it is
#   compared only where versions and processor are those that it was made with.
# - The lasting digest covers the weights, the kinds of activations, and hyperparameters that have
#   had one name for years. It is compared everywhere.
# - The features of a test image show what no attribute does, such as code. They are compared with
#   a tolerance, and everywhere: processors, devices and numbers of threads round otherwise.

#: Hyperparameters of attention, norms, convolutions and pooling, which all versions name alike.
_LASTING = frozenset(
    {
        "alpha", "approximate", "beta", "cls_attn", "depth", "dilation", "embed_dim", "eps",
        "fc_norm", "global_pool", "groups", "has_class_token", "head_dim", "in_features",
        "kernel_size", "lambd", "negative_slope", "no_embed_class", "norm_first",
        "normalized_shape", "num_heads", "num_prefix_tokens", "num_reg_tokens", "out_features",
        "padding", "padding_mode", "patch_size", "pool_type", "stride", "threshold", "window_size",
    }
)  # fmt: skip

#: Attributes that change nothing in what a frozen network gives, or its rounding alone, or that
#: hang on where its weights come from.
_IRRELEVANT = frozenset(
    {"training", "fused_attn", "grad_checkpointing", "pretrained_cfg", "default_cfg"}
)

#: Test images are noise of this seed, made by integers alone.
_SEED = 20_011

#: Numbers that are kept of the features of the test image.
_N_SHADOWS = 8

_STEPS = 2**12  # of a number that is kept, in units of the norm of the features

#: Smallest accepted difference of such numbers; networks of half precision round by more.
_TOLERANCE = 1e-3


class Structure(NamedTuple):
    """Digests of the modules of a network, but for its weights.

    Attributes
    ----------
    strict : bytes
        Over every plain attribute, and the buffers that no state has.
    lasting : bytes
        Over what versions and processors have in common.
    """

    strict: bytes
    lasting: bytes


def structure_of(model: nn.Module) -> Structure:
    """Digests of modules; taken before they have run, since some remember what they saw."""
    strict, lasting = hashlib.sha256(), hashlib.sha256()
    for name, module in model.named_modules():
        kind = type(module).__name__
        strict.update(f"{name} {kind}\n".encode())
        if "activation" in type(module).__module__:
            lasting.update(f"{name} {kind}\n".encode())
        for attribute, text in _attributes(module):
            strict.update(f"  {attribute} {text}\n".encode())
            if attribute in _LASTING:
                lasting.update(f"{name} {attribute} {text}\n".encode())
    kept = model.state_dict()
    for name, value in model.named_buffers():
        if name not in kept:
            _update(strict, name, value)
            if not value.is_floating_point() and not value.is_complex():
                _update(lasting, name, value)
    return Structure(strict.digest(), lasting.digest())


def _attributes(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in _IRRELEVANT:
            continue
        text = _text(value)
        if text is not None:
            yield name, text


def _text(value: Any) -> str | None:
    """A value as text that is the same in every process; None for what has none."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.Size):
        return str(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(str(_text(each)) for each in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(str(_text(each)) for each in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!s}: {_text(each)}' for key, each in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"{_text(value.func)}({_text(value.args)}, {_text(value.keywords)})"
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, torch.Tensor) and not value.is_meta:
        digest = hashlib.sha256()
        _update(digest, "", value)
        return digest.hexdigest()
    if inspect.isroutine(value) or inspect.isclass(value):
        return _text_of_function(value)
    return None


def _text_of_function(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__qualname__", type(function).__name__))
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    constants = [each for each in code.co_consts if not inspect.iscode(each)]
    return f"{name} {code.co_code.hex()} {_text(constants)} {code.co_names}"


def digest_of_first_rule(model: nn.Module, preprocessing: object) -> str:
    """The fingerprint that files of formats 1 to 3 hold: class, weights, preprocessing."""
    # Not over the printed architecture, which new versions of timm and torch reword.
    digest = hashlib.sha256(f"{preprocessing}\n{type(model).__name__}\n".encode())
    for name, value in sorted(model.state_dict().items()):
        _update(digest, name, value)
    return digest.hexdigest()


def _update(digest: Any, name: str, value: torch.Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    data = value.detach().cpu().contiguous().flatten()
    digest.update(data.view(torch.uint8).numpy().tobytes())


@functools.cache
def _environment() -> str:
    """Digest of what the strict digest may hang on beside the network."""
    parts = (
        *(version(package) for package in ("torch", "timm")),
        sys.version_info[:2],
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


# The test image


def test_image(height: int, width: int) -> torch.Tensor:
    """Noise, the same on every machine: (1, 3, height, width)."""
    return _noise(3 * height * width).reshape(1, 3, height, width) * 2


def _noise(n: int) -> torch.Tensor:
    """Numbers in [-0.5, 0.5)."""
    place = np.arange(n, dtype=np.uint64)
    mixed = (place + np.uint64(_SEED)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / 2**24 - 0.5)


def shadows_of(features: torch.Tensor) -> bytes:
    """A few numbers that tell one vector from another: its norm, and its shadows on others."""
    vector = features.detach().double().cpu().flatten()
    directions = _noise(_N_SHADOWS * len(vector)).reshape(_N_SHADOWS, len(vector)).sign().double()
    norm = vector.norm()
    shadows = (directions @ vector / norm * _STEPS).round().clamp(-(2**15), 2**15 - 1)
    if not torch.isfinite(shadows).all():
        shadows = torch.zeros_like(shadows)
    return np.array(norm.item(), "<f4").tobytes() + shadows.numpy().astype("<i2").tobytes()


def _same_shadows(a: bytes, b: bytes, dtype: torch.dtype) -> bool:
    tolerance = max(_TOLERANCE, 8 * torch.finfo(dtype).eps)
    norms = [float(np.frombuffer(each[:4], "<f4")[0]) for each in (a, b)]
    if not np.isfinite(norms).all():
        return a[:4] == b[:4]
    if abs(norms[0] - norms[1]) > tolerance * max(norms):
        return False
    first, second = (np.frombuffer(each[4:], "<i2").astype(int) for each in (a, b))
    return bool((abs(first - second) <= max(1, tolerance * _STEPS)).all())


# The text


class Fingerprint(NamedTuple):
    """The parts of a fingerprint.

    Attributes
    ----------
    strict, environment, lasting : str
    shadows : bytes
        See the head of this file.
    """

    strict: str
    environment: str
    lasting: str
    shadows: bytes

    def __str__(self) -> str:
        shadows = base64.urlsafe_b64encode(self.shadows).decode().rstrip("=")
        return f"{PREFIX}{self.strict}.{self.environment}.{self.lasting}.{shadows}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """Read a fingerprint; None if it is none."""
        try:
            strict, environment, lasting, shadows = text.removeprefix(PREFIX).split(".")
            data = base64.urlsafe_b64decode(shadows + "=" * (-len(shadows) % 4))
        except ValueError:
            return None
        if len(data) != 4 + 2 * _N_SHADOWS:
            return None
        return cls(strict, environment, lasting, data)

    @classmethod
    def of(cls, weights: str, structure: Structure, shadows: Callable[[], bytes]) -> Fingerprint:
        """Put together digests of weights and structure, and the shadows of the features."""
        strict, lasting = (
            hashlib.sha256(weights.encode() + part).hexdigest() for part in structure
        )
        return cls(strict, _environment(), lasting[:32], shadows())

    def is_of_the_same(self, other: Fingerprint, dtype: torch.dtype) -> bool:
        """Whether both are of networks that give the same, in floating type `dtype`."""
        if self.environment == other.environment and self.strict != other.strict:
            return False
        return self.lasting == other.lasting and _same_shadows(self.shadows, other.shadows, dtype)
