"""Calls of a backbone's blocks: seen by hooks during a pass, and repeated by students."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class BlockCall:
    """A call of one of the teacher's blocks, for students to repeat.

    Attributes
    ----------
    index : int
        Position of the block in the backbone, from 0.
    args, kwargs
        All arguments of the block: first the tokens h_{j-1} of shape (batch, tokens, dim), then
        rotary embeddings, position biases, whatever the family passes.
    output : torch.Tensor
        The block's tokens h_j, shape (batch, tokens, dim).
    inside : torch.Tensor of shape (batch, patches), bool, or None
        Patches with pixels that count; None is all.
    """

    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    inside: torch.Tensor | None = None

    @property
    def tokens(self) -> torch.Tensor:
        """The input h_{j-1}, shape (batch, tokens, dim)."""
        return self.args[0]  # [B, N, C]

    def replay(self, student: nn.Module) -> torch.Tensor:
        """Call `student` as the teacher's block was called: (batch, tokens, dim)."""
        return student(*self.args, **self.kwargs)  # [B, N, C]

    def in_full_precision(self) -> BlockCall:
        """The same call with tensors of float32 where these are in half precision."""
        if self.output.dtype not in _HALVES:
            return self
        args, kwargs, output = tree_map_only(
            torch.Tensor, in_full_precision, (self.args, self.kwargs, self.output)
        )
        return dataclasses.replace(self, args=args, kwargs=kwargs, output=output)


Visitor = Callable[[BlockCall], None]


def look_away(call: BlockCall) -> None:
    """Visit no block."""


@contextmanager
def visited(
    blocks: list[tuple[int, nn.Module]],
    visit: Visitor,
    n_images: int,
    inside: torch.Tensor | None = None,
) -> Iterator[None]:
    """Call `visit` after each of `blocks`, with the first `n_images` of the batch."""

    def hook_of(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            _require_tokens(module, index, args, output)
            # The layout of kept tokens, since rounding of products depends on it.
            tokens, output = args[0][:n_images].contiguous(), output[:n_images].contiguous()
            # [B + padding, N, C] -> [B, N, C], both
            visit(BlockCall(index, (tokens, *args[1:]), kwargs, output, inside))

        return hook

    handles = [
        block.register_forward_hook(hook_of(index), with_kwargs=True) for index, block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_tokens(module: nn.Module, index: int, args: tuple[Any, ...], output: Any) -> None:
    given = tuple(args[0].shape) if args and torch.is_tensor(args[0]) else None
    found = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
    if given is None or len(given) != 3 or found != given:
        raise ValueError(
            f"backbone is no Vision Transformer: its block {index} ({type(module).__name__}) turns "
            f"{given} into {found}; a transformer block keeps (batch, tokens, dim). Pass a ViT, "
            "DeiT, BEiT, EVA or DINO model, or 'embedded'."
        )
    if output.data_ptr() == args[0].data_ptr():
        raise ValueError(
            f"backbone's block {index} ({type(module).__name__}) writes its output over its input, "
            "which students need. Let it return a new tensor."
        )


def in_full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float32 if it is in half precision, in which sums overflow and errors vanish."""
    return tensor.float() if tensor.dtype in _HALVES else tensor


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor to numpy, which has no bfloat16: that becomes float32."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.cpu().numpy()
