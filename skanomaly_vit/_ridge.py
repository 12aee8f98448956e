"""Students in closed form: a ridge map from a block's tokens to what the block adds to them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skanomaly_vit._progress import log
from skanomaly_vit._teacher import BlockCall, Teacher


class RidgeStudent(nn.Module):
    """A linear imitation of a transformer block.

    The residual h_j - h_{j-1} of a token is predicted from the token and the mean token of its
    image, which stands in for what attention brings from elsewhere.

    Parameters
    ----------
    weights : torch.Tensor of shape (2 * dim + 1, dim)
        Of the map from [token, mean token, 1] to the residual.
    """

    token_weight: torch.Tensor
    mean_weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        dim = weights.shape[1]
        # The identity is part of the map, so that one product gives h_j, not its residual.
        identity = torch.eye(dim, dtype=weights.dtype, device=weights.device)
        self.register_buffer("token_weight", weights[:dim] + identity)
        self.register_buffer("mean_weight", weights[dim : 2 * dim].clone())
        self.register_buffer("bias", weights[-1].clone())

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict h_j, shape (batch, tokens, dim), from h_{j-1}; other arguments are not used."""
        shift = tokens.mean(dim=1, keepdim=True) @ self.mean_weight + self.bias  # (batch, 1, dim)
        return torch.matmul(tokens, self.token_weight).add_(shift)


@dataclass
class RidgeStatistics:
    """Sums over tokens of outer products: all that a ridge student needs of the training images.

    Attributes
    ----------
    gram : torch.Tensor of shape (2 * dim + 1, 2 * dim + 1), float64
        Of the inputs [token, mean token, 1].
    cross : torch.Tensor of shape (2 * dim + 1, dim), float64
        Of the inputs with the residuals.
    square : float
        Sum of the squared residuals.

    Notes
    -----
    The statistics of two sets of images add up to those of their union.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float = 0.0

    @classmethod
    def empty(cls, dim: int) -> RidgeStatistics:
        """Statistics of no image."""
        size = 2 * dim + 1
        gram = torch.zeros(size, size, dtype=torch.float64)
        return cls(gram, torch.zeros(size, dim, dtype=torch.float64))

    def add(self, call: BlockCall) -> None:
        """Add the tokens of a batch."""
        tokens, residual = call.tokens, call.output - call.tokens
        batch, n_tokens, dim = tokens.shape
        mean, mean_residual = tokens.mean(dim=1), residual.mean(dim=1)  # (batch, dim)
        flat = tokens.reshape(-1, dim)
        # What the mean token shares with all tokens of its image is the sum over them, so its
        # products cost one row an image.
        shared = n_tokens * _outer(mean, mean)
        total = n_tokens * mean.sum(dim=0).double().cpu()
        t, m = slice(0, dim), slice(dim, 2 * dim)
        self.gram[t, t] += _outer(flat, flat)
        self.gram[t, m] += shared
        self.gram[m, t] += shared
        self.gram[m, m] += shared
        for part in (t, m):
            self.gram[part, -1] += total
            self.gram[-1, part] += total
        self.gram[-1, -1] += batch * n_tokens
        self.cross[t] += _outer(flat, residual.reshape(-1, dim))
        self.cross[m] += n_tokens * _outer(mean, mean_residual)
        self.cross[-1] += n_tokens * mean_residual.sum(dim=0).double().cpu()
        self.square += float(residual.square().sum(dtype=torch.float64))

    def solve(self, alpha: float) -> torch.Tensor:
        """Weights of shape (2 * dim + 1, dim) that minimise the penalised squared error.

        Each squared weight but those of the bias is penalised by `alpha` times the mean square
        of the inputs.
        """
        penalty = alpha * self.gram.diagonal()[:-1].mean()
        penalised = self.gram.clone()
        penalised.diagonal()[:-1] += penalty
        return torch.linalg.solve(penalised, self.cross)

    def loss(self, weights: torch.Tensor) -> float:
        """Mean squared error of the map `weights` over the tokens and channels of these images."""
        explained = 2 * (weights * self.cross).sum() - (weights * (self.gram @ weights)).sum()
        n_values = self.gram[-1, -1] * weights.shape[1]
        return float((self.square - explained) / n_values)


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the outer products of `a` and `b`, on the CPU in float64."""
    return (a.T @ b).double().cpu()


def fit_ridge_students(
    teacher: Teacher,
    batches: Iterator[torch.Tensor],
    *,
    n_blocks: int,
    alpha: float,
    verbose: int = 0,
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """Fit one ridge student for each of the last `n_blocks` blocks of `teacher` in one pass.

    Parameters
    ----------
    teacher : Teacher
    batches : iterator of torch.Tensor
        The normalised training images.
    n_blocks : int
    alpha : float
        Strength of the penalty, relative to the mean square of the inputs.
    verbose : int

    Returns
    -------
    students : list of nn.Module
        First the student of the earliest block.
    history : list of dict
        One record, of the form that `train_students` returns.

    Raises
    ------
    ValueError
        If the backbone's tokens are not finite.
    """
    started = time.perf_counter()
    statistics: dict[int, RidgeStatistics] = {}

    def visit(call: BlockCall) -> None:
        if call.index not in statistics:
            statistics[call.index] = RidgeStatistics.empty(call.tokens.shape[-1])
        statistics[call.index].add(call)

    with torch.inference_mode():
        for images in batches:
            teacher(images, n_blocks=n_blocks, visit=visit)
    students: list[nn.Module] = []
    losses = []
    for index, sums in statistics.items():
        weights = sums.solve(alpha) if math.isfinite(sums.square) else torch.tensor(math.nan)
        if not weights.isfinite().all():
            raise ValueError(
                f"Block {index} of the backbone gives tokens that are not finite, or too large to "
                "square. Check its weights."
            )
        losses.append(sums.loss(weights))
        students.append(RidgeStudent(weights.to(teacher.dtype)))
    seconds = time.perf_counter() - started
    log(verbose, "ridge students: mean loss %.4g, %.1f s", sum(losses) / len(losses), seconds)
    return students, [{"epoch": 1, "train_loss": losses, "seconds": seconds}]
