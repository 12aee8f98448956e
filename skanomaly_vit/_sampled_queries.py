"""A transformer block for a sample of its tokens: attention to all, the rest for the sampled."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_ADVICE = "Pass token_fraction=1.0 or student='ridge'."

#: What `forward_queries` uses of a block; the names are those of timm's plain ViT block.
_PARTS: dict[str, type] = {
    "norm1": nn.Module,
    "attn": nn.Module,
    "attn.qkv": nn.Linear,
    "attn.num_heads": int,
    "attn.head_dim": int,
    "attn.scale": float,
    "attn.q_norm": nn.Module,
    "attn.k_norm": nn.Module,
    "attn.attn_drop": nn.Dropout,
    "attn.norm": nn.Module,
    "attn.proj": nn.Module,
    "attn.proj_drop": nn.Module,
    "ls1": nn.Module,
    "drop_path1": nn.Module,
    "norm2": nn.Module,
    "mlp": nn.Module,
    "ls2": nn.Module,
    "drop_path2": nn.Module,
}


def draw_queries(n_tokens: int, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """Sorted positions of a random sample of tokens, shape (ceil(fraction * n_tokens),).

    Every token is as likely as any other, so the mean loss over the sampled tokens is an
    unbiased estimate of the mean over all.

    Parameters
    ----------
    n_tokens : int
        At least 1.
    fraction : float
        In (0, 1].
    generator : torch.Generator
        The sample is on its device.
    """
    order = torch.randperm(n_tokens, generator=generator, device=generator.device)
    return order[: math.ceil(fraction * n_tokens)].sort().values


def forward_queries(block: nn.Module, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """``block(tokens)[:, queries]`` without computing the other tokens.

    Parameters
    ----------
    block : nn.Module
        One that `require_sampling` lets pass, in eval mode.
    tokens : torch.Tensor of shape (batch, n_tokens, dim)
    queries : torch.Tensor of int64, shape (n_queries,)
        Positions of the sampled tokens, the same for all images.

    Returns
    -------
    output : torch.Tensor of shape (batch, n_queries, dim)
        Equal up to rounding.
    """
    parts: Any = block
    queries = queries.to(tokens.device)
    attended = _attend(parts.attn, parts.norm1(tokens), queries)
    sampled = tokens.index_select(1, queries) + parts.drop_path1(parts.ls1(attended))
    return sampled + parts.drop_path2(parts.ls2(parts.mlp(parts.norm2(sampled))))


def _attend(attn: Any, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    heads = (attn.num_heads, attn.head_dim)
    width = math.prod(heads)
    q_weight, kv_weight = attn.qkv.weight.split([width, 2 * width])
    q_bias, kv_bias = (
        (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    )
    q = functional.linear(tokens.index_select(1, queries), q_weight, q_bias)
    k, v = functional.linear(tokens, kv_weight, kv_bias).split(width, dim=-1)
    q, k, v = (x.unflatten(-1, heads).transpose(1, 2) for x in (q, k, v))
    attended = functional.scaled_dot_product_attention(
        attn.q_norm(q),  # (batch, heads, n_queries, head_dim)
        attn.k_norm(k),  # (batch, heads, n_tokens, head_dim)
        v,
        dropout_p=attn.attn_drop.p if attn.training else 0.0,
        scale=attn.scale,
    )
    attended = attended.transpose(1, 2).flatten(2)  # (batch, n_queries, width)
    return attn.proj_drop(attn.proj(attn.norm(attended)))


def require_sampling(block: nn.Module) -> None:
    """Refuse, with a ValueError, a block that `forward_queries` does not reproduce.

    It has to have the parts of a plain pre-norm block and, put to the test on random tokens,
    its outputs. The test is of a copy: `block` is neither changed nor called.
    """
    lacking = [name for name, kind in _PARTS.items() if not isinstance(_part(block, name), kind)]
    if lacking:
        raise _refusal(block, f"it has no {lacking[0]} ({_PARTS[lacking[0]].__name__})")
    try:
        reproduced = _is_reproduced(_with_random_weights(block))
    except Exception as error:
        raise _refusal(block, f"called with random tokens alone, it fails: {error}") from error
    if not reproduced:
        raise _refusal(block, "its output is not that of a plain pre-norm transformer block")


def require_plain_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse, with a ValueError, a call of a block that hands it more than its tokens.

    Parameters
    ----------
    args, kwargs
        What the teacher gave its block, the tokens first; all else must be None or False.
    """
    given = {f"argument {position}": value for position, value in enumerate(args[1:], start=1)}
    for name, value in (given | kwargs).items():
        if not (value is None or value is False):
            raise ValueError(
                "The backbone's blocks cannot be trained on a sample of their tokens: besides "
                f"the tokens they are given {name}, a {type(value).__name__}. {_ADVICE}"
            )


def _part(block: Any, name: str) -> Any:
    return functools.reduce(lambda part, step: getattr(part, step, None), name.split("."), block)


def _refusal(block: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"Block {type(block).__name__} cannot be trained on a sample of its tokens: {reason}. "
        f"{_ADVICE}"
    )


def _with_random_weights(block: nn.Module) -> nn.Module:
    """Copy `block` with weights under which every part of it shows in the output."""
    # As they are, a layer scale of 1e-5 or a gate at 0 would hide any difference. In float64 on
    # the CPU one tolerance is right for all, reduced-precision matrix products included.
    probe = copy.deepcopy(block).to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            draws = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draws / math.sqrt(fan_in))
    return probe


@torch.no_grad()
def _is_reproduced(probe: Any) -> bool:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 9, probe.attn.qkv.in_features)
    tokens = torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = probe(tokens)
    # A sample too: what mixes tokens after attention differs only there.
    return all(
        torch.allclose(forward_queries(probe, tokens, queries), expected[:, queries], 1e-5, 1e-5)
        for queries in (torch.arange(9), torch.tensor([0, 3, 4, 8]))
    )
