"""A machine that has instructions for bfloat16, or has none."""

from __future__ import annotations

import pytest
import torch


def set_bfloat16(monkeypatch: pytest.MonkeyPatch, *, amx: bool = False, avx512: bool = False):
    """Have torch tell of these instructions."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name, value in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512)):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
