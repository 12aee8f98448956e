"""Ridge students in closed form: a linear map from a block's tokens to their residuals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall, in_full_precision
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._backbone.teacher import FEW_ROWS
from skanomaly_vit._utils.progress import log
from skanomaly_vit.distillation._checkpoints import Checkpoints, Part
from skanomaly_vit.distillation._gram import RidgeGram
from skanomaly_vit.distillation._trained import Trained


class RidgeModule(nn.Module):
    """A linear imitation of a transformer block.

    It predicts the residual h_j - h_{j-1} of a token from the token and the mean token of its
    image, which stands in for attention to other tokens. Of tokens in half precision, products are
    in half precision, sums in float32.

    Parameters
    ----------
    token_weight, mean_weight : torch.Tensor of shape (dim, dim)
        Maps from the token, and from the mean token, to the residual.
    bias : torch.Tensor of shape (1, dim)
    """

    token_weight: torch.Tensor
    mean_weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self, token_weight: torch.Tensor, mean_weight: torch.Tensor, bias: torch.Tensor
    ) -> None:
        super().__init__()
        # Copies of one layout: the rounding of products depends on it.
        layout = torch.contiguous_format
        self.register_buffer("token_weight", token_weight.clone(memory_format=layout))
        self.register_buffer("mean_weight", mean_weight.clone(memory_format=layout))
        self.register_buffer("bias", bias.clone(memory_format=layout))

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict h_j, shape (batch, tokens, dim), from h_{j-1}; other arguments are not used."""
        if tokens.dtype != self.bias.dtype:
            return self._of_half_precision(tokens)
        mean = tokens.mean(dim=1, keepdim=True)  # [B, N, C] -> [B, 1, C]
        # One product per image: a product of all means rounds differently for few images and for
        # many, so a score would depend on its neighbours.
        # [B, 1, C] x [B, C, C] + [1, C] -> [B, 1, C]
        shift = torch.bmm(mean, self.mean_weight.expand(len(mean), -1, -1)) + self.bias
        flat = tokens.flatten(0, 1)  # [B, N, C] -> [B * N, C]
        # [B * N, C] + [B * N, C] x [C, C] -> [B, N, C] + [B, 1, C]
        return torch.addmm(flat, flat, self.token_weight).view_as(tokens).add_(shift)

    def _of_half_precision(self, tokens: torch.Tensor) -> torch.Tensor:
        mean = tokens.mean(dim=1)  # [B, N, C] -> [B, C]
        # Copies of weights for each image, as `bmm` makes them, would take longer than the product.
        n_more = max(0, FEW_ROWS - len(mean))
        padded = torch.nn.functional.pad(mean, (0, 0, 0, n_more))  # [B + n_more, C]
        shift = torch.mm(padded, self.mean_weight.to(mean.dtype))[: len(mean)] + self.bias  # [B, C]
        flat = tokens.flatten(0, 1)  # [B, N, C] -> [B * N, C]
        residual = torch.mm(flat, self.token_weight.to(flat.dtype)).view_as(tokens)  # [B, N, C]
        return (residual + shift[:, None]).add_(tokens)  # [B, N, C]


def weights_of(student: nn.Module) -> torch.Tensor:
    """The map as `RidgeStatistics.solve` gives it: (2 * dim + 1, dim), float64, on the CPU."""
    names = ("token_weight", "mean_weight", "bias")
    # [C, C], [C, C], [1, C] -> [2 * C + 1, C]
    return torch.cat([student.get_buffer(name) for name in names]).cpu().double()


@dataclass
class RidgeStatistics:
    """Sums over tokens of outer products: all that a ridge student needs of the training images.

    Attributes
    ----------
    gram : torch.Tensor of shape (2 * dim + 1, 2 * dim + 1), float64
        Outer products of the inputs [token, mean token, 1].
    cross : torch.Tensor of shape (2 * dim + 1, dim), float64
        Outer products of the inputs and the residuals.
    square : float
        Sum of the squared residuals.
    dtype : torch.dtype
        Type of the tokens added last.

    Notes
    -----
    The statistics of two sets of images add up to those of their union.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float = 0.0
    dtype: torch.dtype = torch.float32

    @classmethod
    def empty(cls, dim: int) -> RidgeStatistics:
        """Statistics of no image."""
        size = 2 * dim + 1
        gram = torch.zeros(size, size, dtype=torch.float64)
        return cls(gram, torch.zeros(size, dim, dtype=torch.float64))

    def part(self) -> Part:
        """State for a checkpoint."""
        # A tensor, since JSON has no NaN or infinity.
        square = torch.tensor(self.square, dtype=torch.float64)
        values = {"dtype": str(self.dtype).removeprefix("torch.")}
        return values, {"gram": self.gram, "cross": self.cross, "square": square}

    @classmethod
    def from_part(cls, part: Part) -> RidgeStatistics:
        """The inverse of `part`."""
        values, tensors = part
        square, dtype = float(tensors["square"]), getattr(torch, values["dtype"])
        return cls(tensors["gram"], tensors["cross"], square, dtype)

    @classmethod
    def of_gram(cls, kept: RidgeGram, student: RidgeModule, alpha: float) -> RidgeStatistics:
        """Statistics of the images of a student, which is their solution for `alpha`."""
        matrix, square = kept.unpack()
        gram = torch.from_numpy(matrix)
        cross = _penalized(gram, alpha) @ weights_of(student)
        return cls(gram, cross, square, student.bias.dtype)

    def add(self, call: BlockCall) -> None:
        """Add the tokens of a batch."""
        tokens, output = (in_full_precision(each) for each in (call.tokens, call.output))
        residual = output - tokens  # [B, N, C]
        batch, n_tokens, dim = tokens.shape
        mean, mean_residual = tokens.mean(dim=1), residual.mean(dim=1)  # [B, C] each
        flat = tokens.reshape(-1, dim)  # [B, N, C] -> [B * N, C]
        # The products of a mean token with all tokens of its image sum to n_tokens times its own,
        # so they cost one row per image.
        shared = n_tokens * _outer(mean, mean)  # [C, C]
        total = n_tokens * mean.sum(dim=0).cpu().double()  # [C]
        # [C, C] each
        of_tokens, crossed = _outer(flat, flat), _outer(flat, residual.reshape(-1, dim))
        crossed_means = n_tokens * _outer(mean, mean_residual)  # [C, C]
        total_residual = n_tokens * mean_residual.sum(dim=0).cpu().double()  # [C]
        squares = residual.square()  # [B, N, C]
        if squares.device.type != "cpu":  # sending all of them takes as long as a pass
            squares = squares.sum(dim=2)  # [B, N, C] -> [B, N]
        square = float(squares.cpu().sum(dtype=torch.float64))
        # Add nothing before everything is there: the device can run out of memory up to here.
        t, m = slice(0, dim), slice(dim, 2 * dim)
        self.gram[t, t] += of_tokens
        self.gram[t, m] += shared
        self.gram[m, t] += shared
        self.gram[m, m] += shared
        for part in (t, m):
            self.gram[part, -1] += total
            self.gram[-1, part] += total
        self.gram[-1, -1] += batch * n_tokens
        self.cross[t] += crossed
        self.cross[m] += crossed_means
        self.cross[-1] += total_residual
        self.square += square
        self.dtype = call.tokens.dtype

    @torch.inference_mode()
    def merge(self, other: RidgeStatistics) -> None:
        """Add the statistics of other images."""
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square

    def solve(self, alpha: float) -> torch.Tensor:
        """Weights of shape (2 * dim + 1, dim) that minimize the penalized squared error.

        The penalty on each squared weight, except those of the bias, is `alpha` times the mean
        square of the inputs.

        Raises
        ------
        ValueError
            If the inputs' Gram matrix is not positive definite even with the penalty.
        """
        penalised = _penalized(self.gram, alpha)
        if torch.linalg.cholesky_ex(penalised).info:
            raise ValueError(
                f"the Gram matrix of the tokens is not positive definite, even with the penalty "
                f"alpha={alpha}: products rounded it by more than that, or all tokens are 0. Pass "
                "a larger alpha, RidgeStudent(alpha=...), or a backbone in float32."
            )
        return torch.linalg.solve(penalised, self.cross)  # [2 * C + 1, C]

    def loss(self, weights: torch.Tensor) -> float:
        """Mean squared error of the map `weights` over the tokens and channels of these images."""
        explained = 2 * (weights * self.cross).sum() - (weights * (self.gram @ weights)).sum()
        n_values = self.gram[-1, -1] * weights.shape[1]
        return float((self.square - explained) / n_values)


def _penalized(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """Add the penalty of `RidgeStatistics.solve` to a Gram matrix; the bias has none."""
    penalised = gram.clone()
    penalised.diagonal()[:-1] += alpha * gram.diagonal()[:-1].mean()  # [2 * C] -> []
    return penalised


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the outer products of `a` and `b`, on the CPU in float64."""
    # In this order, since a device need not have float64.
    return (a.T @ b).cpu().double()  # [n, C], [n, C] -> [C, C]


#: Block -> statistics of its tokens.
RidgeSums: TypeAlias = dict[int, RidgeStatistics]


@torch.inference_mode()
def sum_tokens(
    passes: TeacherPasses,
    indices: np.ndarray,
    blocks: Collection[int],
    track: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> RidgeSums:
    """Statistics of the tokens of some images, before and after each of `blocks`."""
    sums: RidgeSums = {}

    def visit(call: BlockCall) -> None:
        if call.index not in sums:
            sums[call.index] = RidgeStatistics.empty(call.tokens.shape[-1])
        sums[call.index].add(call)

    for _ in passes.run(indices, blocks, visit, track=track):
        pass
    return sums


def merge_sums(shards: Iterable[RidgeSums], total: RidgeSums | None = None) -> RidgeSums:
    """Merge the sums of shards, into `total` if it is given."""
    total = {} if total is None else total
    for sums in shards:
        for index, statistics in sums.items():
            if index in total:
                total[index].merge(statistics)
            else:
                total[index] = statistics
    return total


def fit_ridge_students(
    sums_after: Callable[[int], Iterable[RidgeSums]],
    blocks: Collection[int],
    *,
    alpha: float,
    checkpoints: Checkpoints,
    verbose: int = 0,
) -> dict[int, Trained]:
    """Fit one ridge student for each block.

    Parameters
    ----------
    sums_after : callable
        Takes a number of shards to skip, and yields the sums of each later shard of the training
        images. Shards must be the same whoever sums them: the rounding of float sums depends on
        their order.
    blocks : collection of int
        Indices of the blocks to imitate.
    alpha : float
        Strength of the penalty, relative to the mean square of the inputs.
    checkpoints : Checkpoints
        Checkpoints of the sums; their steps are shards.
    verbose : int

    Returns
    -------
    trained : dict of int to Trained
        In the floating type of the tokens, or float32 if that is half precision.

    Raises
    ------
    ValueError
        If the backbone's tokens are not finite.
    """
    started = time.perf_counter()
    n_shards, parts = checkpoints.latest(map(str, blocks), verbose)
    total = {i: RidgeStatistics.from_part(parts[str(i)]) for i in blocks if parts}

    def save() -> None:
        checkpoints.save(n_shards, ((str(index), total[index].part()) for index in total))

    for sums in sums_after(n_shards):
        merge_sums([sums], total)
        n_shards += 1
        if checkpoints.is_due:
            save()
    save()
    trained = {index: solve_student(index, sums, alpha) for index, sums in total.items()}
    mean = sum(record.train_loss[0] for record in trained.values()) / len(trained)
    seconds = time.perf_counter() - started
    log(verbose, "Solved the ridge students in %.1f s; their mean loss is %.4g.", seconds, mean)
    return trained


def solve_student(index: int, sums: RidgeStatistics, alpha: float) -> Trained:
    """Solve for the ridge student of a block, in the type that `fit_ridge_students` says."""
    finite = math.isfinite(sums.square) and sums.gram.isfinite().all()
    try:
        weights = sums.solve(alpha) if finite else torch.tensor(math.nan)
    except ValueError as error:
        raise ValueError(f"Block {index} of the backbone: {error}") from None
    if not weights.isfinite().all():
        raise ValueError(
            f"Block {index} of the backbone gives tokens that are not finite, or too large to "
            "square. Check its weights."
        )
    dim = weights.shape[1]
    dtype = torch.promote_types(sums.dtype, torch.float32)
    student = RidgeModule(*weights.to(dtype).split([dim, dim, 1]))  # [C, C], [C, C], [1, C]
    return Trained(
        student, [sums.loss(weights)], [], RidgeGram.pack(sums.gram.numpy(), sums.square)
    )


def update_student(
    index: int, known: Trained, sums: RidgeStatistics, alpha: float
) -> tuple[Trained, float]:
    """Solve for a ridge student again, with more images.

    Parameters
    ----------
    index : int
        Its block.
    known : Trained
        The student, with its Gram matrix.
    sums : RidgeStatistics
        Of the new images.
    alpha : float
        Penalty that the student was solved with.

    Returns
    -------
    updated : Trained
    ratio : float
        Mean error of the new student on the images of the old one, relative to that of the old.
    """
    if known.gram is None or not isinstance(known.student, RidgeModule):
        raise TypeError(f"the student of block {index} keeps no Gram matrix")
    before = RidgeStatistics.of_gram(known.gram, known.student, alpha)
    sums.merge(before)
    updated = solve_student(index, sums, alpha)
    old, new = (before.loss(weights_of(each.student)) for each in (known, updated))
    # Rounding can leave nothing of a loss of nearly 0.
    return updated, new / old if min(old, new) > 0 else 1.0
