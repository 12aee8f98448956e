"""Devices of networks: the one that a user names, or the best one."""

from __future__ import annotations

import copy
import itertools
import os

import torch
from torch import nn


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Resolve ``None`` to the best device, of GPUs the rank's own; a named one must exist."""
    if device is None:
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not a torch device. Pass None, 'cpu', 'cuda', 'cuda:1', 'mps'."
        ) from error
    missing = (resolved.type == "cuda" and not torch.cuda.is_available()) or (
        resolved.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(
            f"device={str(device)!r} is not available on this machine. Pass device=None for the "
            "best available one, or device='cpu'."
        )
    return resolved


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, or a copy on another device: others may be using the original."""
    there = torch.empty(0, device=device).device  # "cuda" is the current GPU, which has a number
    tensors = itertools.chain(module.parameters(), module.buffers())
    if all(tensor.device == there for tensor in tensors):
        return module
    return copy.deepcopy(module).to(there)


def _own_gpu() -> torch.device:
    """The GPU that torchrun assigns to this process, or the current one if it runs alone."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return torch.device("cuda")
    # If each process sees one GPU only, that is number 0 to all of them.
    return torch.device("cuda", int(rank) % torch.cuda.device_count())
