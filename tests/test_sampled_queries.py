"""Blocks for a sample of their tokens: the same outputs, an unbiased gradient, or a refusal."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.attention import Attention
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skanomaly_vit._sampled_queries import (
    draw_queries,
    forward_queries,
    require_plain_call,
    require_sampling,
)

PLAIN = [
    "class token",
    "register tokens",
    "no class token",
    "distillation token (DeiT)",
]
OTHER = sorted(FAMILIES.keys() - set(PLAIN))
ADVICE = r"Pass token_fraction=1\.0 or student='ridge'\."

#: Blocks of the plain class with every option that changes what is computed.
OPTIONS = {
    "no biases": {"proj_bias": False},
    "biases": {"qkv_bias": True},
    "layer scale": {"qkv_bias": True, "init_values": 1.0},
    "layer scale near 0": {"init_values": 1e-6},
    "qk_norm": {"qkv_bias": True, "qk_norm": True},
    "norms of scale": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "dropout, which eval mode turns off": {"proj_drop": 0.5, "attn_drop": 0.5, "drop_path": 0.5},
}


def plain_block(dtype: torch.dtype = torch.float64, **options) -> Block:
    """A block of dimension 24 in eval mode, its weights spread so that every part matters."""
    block = Block(24, 3, **options)
    spread(block)
    return block.to(dtype).eval()


def spread(block: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)


def tokens_of(batch: int, n_tokens: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        (batch, n_tokens, 24), generator=torch.Generator().manual_seed(batch), dtype=dtype
    )


def assert_rows_of_full_block(block: nn.Module, batch: int, n_tokens: int, fraction: float) -> None:
    tokens = tokens_of(batch, n_tokens)
    queries = draw_queries(n_tokens, fraction, torch.Generator().manual_seed(n_tokens))
    sampled = forward_queries(block, tokens, queries)
    assert sampled.shape == (batch, len(queries), 24)
    torch.testing.assert_close(sampled, block(tokens)[:, queries], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("position", [0, 2])
def test_rows_of_the_full_block_in_plain_families(name, position):
    block = family(name).blocks[position].double().eval()
    require_sampling(block)
    for batch, fraction in itertools.product([1, 2, 5], [0.01, 0.25, 0.6, 1.0]):
        assert_rows_of_full_block(block, batch, 17, fraction)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rows_of_the_full_block_with_options(options):
    block = plain_block(**options)
    require_sampling(block)
    for batch, fraction in itertools.product([1, 3], [0.01, 0.5, 1.0]):
        assert_rows_of_full_block(block, batch, 11, fraction)


def with_attention(**options) -> Block:
    """A plain block with options of `Attention` that `Block` does not hand on."""
    block = Block(24, 3)
    try:
        block.attn = Attention(24, num_heads=3, norm_layer=nn.LayerNorm, **options)
    except TypeError:
        pytest.skip(f"this timm's Attention has no {', '.join(options)}")
    spread(block)
    return block.double().eval()


def test_rows_of_the_full_block_where_heads_are_not_dim_over_heads_wide():
    block = with_attention(attn_head_dim=5)
    require_sampling(block)
    assert_rows_of_full_block(block, 2, 11, 0.4)


def test_rows_of_the_full_block_where_attention_is_not_fused():
    block = plain_block(qkv_bias=True)
    block.attn.fused_attn = False
    block.attn.scale = 0.1
    require_sampling(block)
    assert_rows_of_full_block(block, 2, 11, 0.4)


@settings(deadline=None, max_examples=30)
@given(
    queries=st.sets(st.integers(0, 8), min_size=1).map(sorted),
    batch=st.integers(1, 4),
)
def test_rows_of_the_full_block_for_any_subset(queries, batch):
    block, tokens = plain_block(qkv_bias=True, qk_norm=True), tokens_of(batch, 9)
    sampled = forward_queries(block, tokens, torch.tensor(queries))
    torch.testing.assert_close(sampled, block(tokens)[:, queries], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 0.2), (torch.float16, 0.02)],
)
def test_dtype_is_kept(dtype, tolerance):
    block, tokens = plain_block(dtype, qkv_bias=True), tokens_of(2, 11, dtype)
    require_sampling(block)
    sampled = forward_queries(block, tokens, torch.tensor([1, 4]))
    assert sampled.dtype == dtype
    torch.testing.assert_close(sampled, block(tokens)[:, [1, 4]], rtol=tolerance, atol=tolerance)


def gradients(block: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(block.parameters())))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "qk_norm": True, "init_values": 1.0}], ids=["bare", "all"]
)
def test_gradient_is_unbiased(options, size):
    block, tokens = plain_block(**options), tokens_of(2, 6)
    target = tokens.flip(0)
    full = gradients(block, nn.functional.mse_loss(block(tokens), target))
    subsets = [torch.tensor(s) for s in itertools.combinations(range(6), size)]
    sampled = [
        gradients(block, nn.functional.mse_loss(forward_queries(block, tokens, s), target[:, s]))
        for s in subsets
    ]
    assert any((one[0] - full[0]).abs().max() > 1e-3 for one in sampled)
    for expected, *parts in zip(full, *sampled, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), expected, rtol=1e-9, atol=1e-12)


def test_only_keys_and_values_are_computed_for_all_tokens():
    block, tokens = plain_block(), tokens_of(2, 10)
    with FlopCounterMode(display=False) as counter:
        forward_queries(block, tokens, torch.tensor([0, 3, 7]))
    counts = counter.get_flop_counts()["Global"]
    linear = sum(
        n for name, n in counts.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    keys_and_values, queries_projection_and_mlp = 2, 1 + 1 + 8
    rows = 2 * (10 * keys_and_values + 3 * queries_projection_and_mlp)
    assert linear == 2 * rows * 24**2


@pytest.mark.parametrize("name", OTHER)
def test_other_families_are_refused(name):
    block = family(name).blocks[0]
    with pytest.raises(ValueError, match=f"Block {type(block).__name__} cannot be .*{ADVICE}"):
        require_sampling(block)


@pytest.mark.parametrize("kind", [ResPostBlock, ParallelScalingBlock, ParallelThingsBlock])
def test_other_blocks_of_the_plain_room_are_refused(kind):
    with pytest.raises(
        ValueError, match=f"Block {kind.__name__} cannot be .* it has no .*{ADVICE}"
    ):
        require_sampling(kind(24, 3))


class ResPost(Block):
    def forward(self, x):
        x = x + self.ls1(self.norm1(self.attn(x)))
        return x + self.ls2(self.norm2(self.mlp(x)))


class Parallel(Block):
    def forward(self, x):
        return x + self.ls1(self.attn(self.norm1(x))) + self.ls2(self.mlp(self.norm2(x)))


class Masked(Block):
    """The first token is not attended to."""

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        mask[:, 0] = False
        x = x + self.ls1(self.attn(self.norm1(x), attn_mask=mask))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ZeroGate(Block):
    """A gate that lets nothing through at first: only with other weights is it seen."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.gate * x.mean(dim=1, keepdim=True)


class FirstTokenPassed(Block):
    def forward(self, x):
        return torch.cat([x[:, :1], super().forward(x)[:, 1:]], dim=1)


class MeanAdded(nn.Module):
    """An MLP that sees the other tokens: what it gives depends on which are sampled."""

    def __init__(self, **ignored):
        super().__init__()

    def forward(self, x):
        return x + x.mean(dim=1, keepdim=True)


class NeedsMore(Block):
    def forward(self, x, rope):
        return super().forward(x * rope)


class Adapted(nn.Linear):
    """A low-rank adapter, which starts at zero."""

    def __init__(self):
        super().__init__(24, 72)
        self.down, self.up = nn.Linear(24, 2), nn.Linear(2, 72)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def adapted() -> Block:
    block = Block(24, 3)
    block.attn.qkv = Adapted()
    return block


def hooked() -> Block:
    block = Block(24, 3)
    block.attn.qkv.register_forward_hook(lambda module, args, output: 2 * output)
    return block


def other_scale() -> Block:
    block = Block(24, 3)
    block.attn.fused_attn, block.attn.scale = True, 1.0
    return block


def closed_over() -> Block:
    block = Block(24, 3)
    forward = block.double().forward
    block.forward = lambda x: forward(x).relu()
    return block


OTHER_FORWARDS = {
    "residual after norm": lambda: ResPost(24, 3),
    "parallel": lambda: Parallel(24, 3),
    "masked": lambda: Masked(24, 3),
    "masked, layer scale near 0": lambda: Masked(24, 3, init_values=1e-6),
    "gate at 0": lambda: ZeroGate(24, 3),
    "first token passed on": lambda: FirstTokenPassed(24, 3),
    "MLP mixes tokens": lambda: Block(24, 3, mlp_layer=MeanAdded),
    "adapter at 0": adapted,
    "hook on qkv": hooked,
    "a scale that fused attention ignores": other_scale,
    "forward replaced": closed_over,
}


@pytest.mark.parametrize("make", OTHER_FORWARDS.values(), ids=OTHER_FORWARDS)
def test_same_parts_but_another_forward_are_refused(make):
    block = make()
    with pytest.raises(ValueError, match=f"its output is not that of a plain .*{ADVICE}"):
        require_sampling(block)


def test_gated_attention_is_refused():
    with pytest.raises(ValueError, match=f"Block Block cannot be .*{ADVICE}"):
        require_sampling(with_attention(gated=True))


def test_a_block_that_needs_more_than_tokens_is_refused():
    with pytest.raises(ValueError, match=f"Block NeedsMore cannot be .*fails: .*'rope'.*{ADVICE}"):
        require_sampling(NeedsMore(24, 3))


def test_any_module_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Block Linear cannot be .* it has no norm1 \(Module\)"):
        require_sampling(nn.Linear(24, 24))


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_block_alone(training):
    block = plain_block(torch.float32, qkv_bias=True, drop_path=0.1).train(training)
    block.norm1.eval()
    block.mlp.requires_grad_(False)
    block.norm2.weight.grad = torch.ones(24)
    before = copy.deepcopy(block)
    require_sampling(block)
    assert [m.training for m in block.modules()] == [m.training for m in before.modules()]
    for mine, original in zip(block.parameters(), before.parameters(), strict=True):
        assert mine.dtype == original.dtype
        assert torch.equal(mine, original)
        assert mine.requires_grad == original.requires_grad
    assert torch.equal(block.norm2.weight.grad, torch.ones(24))
    assert block.norm1.weight.grad is None


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    block = family("class token").blocks[0]
    require_sampling(block)
    queries = draw_queries(17, 0.25, torch.Generator().manual_seed(0))
    forward_queries(block, tokens_of(2, 17, torch.float32), queries)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((None,), {"attn_mask": None, "is_causal": False}),
        ((None, False), {"rope": None}),
    ],
)
def test_plain_calls(args, kwargs):
    require_plain_call((tokens_of(1, 3), *args), kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ((torch.zeros(3),), {}, "argument 1, a Tensor"),
        ((None, 0), {}, "argument 2, a int"),
        ((), {"attn_mask": torch.zeros(3, 3)}, "attn_mask, a Tensor"),
        ((None,), {"rope": None, "is_causal": True}, "is_causal, a bool"),
    ],
)
def test_other_calls_are_refused(args, kwargs, found):
    with pytest.raises(ValueError, match=f"they are given {found}. {ADVICE}"):
        require_plain_call((tokens_of(1, 3), *args), kwargs)


@settings(deadline=None)
@given(
    n_tokens=st.integers(1, 300),
    fraction=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**32),
)
def test_queries_are_sorted_distinct_positions(n_tokens, fraction, seed):
    queries = draw_queries(n_tokens, fraction, torch.Generator().manual_seed(seed))
    again = draw_queries(n_tokens, fraction, torch.Generator().manual_seed(seed))
    assert queries.dtype == torch.int64
    assert len(queries) == max(1, math.ceil(fraction * n_tokens))
    assert (queries.diff() > 0).all()
    assert 0 <= queries[0] <= queries[-1] < n_tokens
    assert torch.equal(queries, again)


def test_successive_samples_differ():
    generator = torch.Generator().manual_seed(0)
    samples = {tuple(draw_queries(50, 0.2, generator).tolist()) for _ in range(20)}
    assert len(samples) == 20


def test_every_token_and_every_pair_is_as_likely():
    n_draws, generator = 4000, torch.Generator().manual_seed(0)
    drawn = np.zeros((n_draws, 10))
    for row in drawn:
        row[draw_queries(10, 0.3, generator)] = 1
    together = drawn.T @ drawn / n_draws
    # Five standard deviations of a share of 4,000 draws.
    np.testing.assert_allclose(np.diag(together), 0.3, atol=5 * np.sqrt(0.21 / n_draws))
    pair = 3 * 2 / (10 * 9)
    pairs = together[~np.eye(10, dtype=bool)]
    np.testing.assert_allclose(pairs, pair, atol=5 * np.sqrt(pair * (1 - pair) / n_draws))
