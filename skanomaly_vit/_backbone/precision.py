"""Floating types of backbones: what this machine computes fast, and what "auto" becomes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skanomaly_vit._utils.compat import StrOptions
from skanomaly_vit._utils.labels import AUTO, is_auto
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import PrecisionWarning

FLOAT32, BFLOAT16 = "float32", "bfloat16"

#: Constraint of the parameter `dtype`.
DTYPE_CONSTRAINT: list[Any] = [StrOptions({FLOAT32, BFLOAT16, AUTO})]

#: Functions of ``torch.cpu`` that tell of instructions for bfloat16; older versions lack some.
_INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, as torch tells; False if it does not tell."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return _multiplies(device)
    if not torch.backends.mkldnn.is_available():  # no one else in torch uses these instructions
        return False
    return any(getattr(torch.cpu, name, bool)() for name in _INSTRUCTIONS)


def _multiplies(device: torch.device) -> bool:
    try:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones == 2).all())
    except (TypeError, RuntimeError):  # macOS before 14, or a GPU without it
        return False


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """The type itself, or for "auto" the faster one of a device."""
    if not is_auto(dtype):
        return dtype
    return BFLOAT16 if has_fast_bfloat16(device) else FLOAT32


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """Have a network of float32 work in a type; one of another type keeps its own."""
    if dtype == BFLOAT16 and next(model.parameters()).dtype == torch.float32:
        return model.to(torch.bfloat16)
    return model


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of a network of bfloat16 on a device without instructions for it."""
    if dtype != torch.bfloat16 or has_fast_bfloat16(device):
        return
    what = "the processor has neither AVX512-BF16 nor AMX, as torch tells"
    if device.type != "cpu":
        what = f"{device} has no instructions for it, as torch tells"
    warn_user(
        f"The backbone works in bfloat16, but {what}: it takes four to seven times as long as "
        "in float32. A fitted model keeps its type, since its threshold holds for no other. Fit "
        "with dtype='float32' for this machine, or with 'auto', which chooses by the machine.",
        PrecisionWarning,
    )
