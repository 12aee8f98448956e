"""Ridge students: a linear map for each block, in closed form."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._caching.memory import Tensors
from skanomaly_vit._utils.compat import Interval, _fit_context
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.distillation._ridge import (
    RidgeModule,
    RidgeStatistics,
    RidgeSums,
    fit_ridge_students,
    merge_sums,
    solve_student,
    update_student,
)
from skanomaly_vit.distillation._sharing import sum_shards
from skanomaly_vit.distillation._student import Shapes, StorableStudent, TrainingTask
from skanomaly_vit.distillation._trained import Trained

#: Measured by fits of the embedded backbone with float32 and float64 products (120 images).
MIN_ALPHA = 1e-4


class RidgeStudent(StorableStudent):
    """A linear imitation of a transformer block, solved in closed form in one pass.

    It predicts the residual h_j - h_{j-1} that a block adds to a token, from the token and the mean
    token of its image, which stands in for attention to other tokens. The default student.

    Parameters
    ----------
    alpha : float, default=0.01
        Penalty on the squared weights, relative to the mean square of the inputs; at least 1e-4.
        Below, the float32 products of tokens are no longer precise enough: rounding changes a
        discrepancy by 0.2 % at 1e-4, by 20 % at 1e-5, and makes it noise at 1e-6.

    Attributes
    ----------
    module_ : torch.nn.Module
        The map that `fit` found. `BlockDistillation` keeps its maps in its own `students_`.

    See Also
    --------
    BlockStudent : The student of the paper.
    BlockDistillation : Fits a student for each of the last blocks of a backbone.

    Notes
    -----
    `fit` and `predict` are the protocol for a student of your own: ``student=`` takes any estimator
    that has both, and `BlockDistillation` clones it for each block.

    Examples
    --------
    >>> import torch
    >>> from skanomaly_vit.distillation import RidgeStudent
    >>> tokens = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    >>> student = RidgeStudent(alpha=1e-4).fit([(tokens, 2 * tokens + 1)])
    >>> torch.allclose(student.predict(tokens), 2 * tokens + 1, atol=1e-2)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, MIN_ALPHA, None, closed="left")]
    }

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = alpha

    @_fit_context(prefer_skip_nested_validation=True)
    @with_own_settings
    def fit(
        self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], y: object = None
    ) -> RidgeStudent:
        """Fit the map to the tokens of normal images.

        Parameters
        ----------
        batches : iterable of (torch.Tensor, torch.Tensor)
            Tokens h_{j-1} before the block and h_j after it, each of shape (batch, tokens, dim).
            Each iteration passes over the same images.
        y : object, default=None
            Ignored; present for the API's sake.

        Returns
        -------
        self : RidgeStudent
            Fitted.

        Raises
        ------
        ValueError
            If there is no batch, or tokens are not finite.
        """
        sums: RidgeStatistics | None = None
        with torch.inference_mode():
            for tokens, output in batches:
                sums = sums or RidgeStatistics.empty(tokens.shape[-1])
                sums.add(BlockCall(0, (tokens,), {}, output))
        if sums is None:
            raise ValueError("RidgeStudent.fit found no batch of tokens; pass at least one")
        self.module_ = solve_student(0, sums, self.alpha).student
        return self

    @with_own_settings
    def predict(self, tokens: torch.Tensor) -> torch.Tensor:
        """Predict the tokens after the block.

        Parameters
        ----------
        tokens : torch.Tensor of shape (batch, tokens, dim)
            Tokens h_{j-1} before the block.

        Returns
        -------
        output : torch.Tensor of shape (batch, tokens, dim)
            Predicted tokens h_j after the block.
        """
        check_is_fitted(self)
        return self.module_(tokens)

    def _fit_blocks(
        self, task: TrainingTask, blocks: Sequence[int]
    ) -> tuple[dict[int, Trained], list[float]]:
        started = time.perf_counter()
        n_batches = math.ceil(len(task.train) / task.passes.batch_size)
        with task.progress.task("epoch", n_batches) as progress:

            def sums_after(n_shards: int) -> Iterator[RidgeSums]:
                return sum_shards(task.passes, task.train, blocks, progress.track, n_shards)

            trained = fit_ridge_students(
                sums_after,
                blocks,
                alpha=self.alpha,
                checkpoints=task.checkpoints,
                verbose=task.verbose,
            )
        return trained, [time.perf_counter() - started]

    def _update_blocks(
        self, passes: CachedPasses, train: np.ndarray, known: Mapping[int, Trained]
    ) -> tuple[dict[int, Trained], dict[int, float]] | None:
        if not len(train) or any(record.gram is None for record in known.values()):
            return None  # a model file of an older version has no Gram matrices
        total = merge_sums(sum_shards(passes, train, sorted(known), iter))
        updated = {
            index: update_student(index, known[index], sums, self.alpha)
            for index, sums in total.items()
        }
        trained, ratios = ({i: pair[k] for i, pair in updated.items()} for k in (0, 1))
        return trained, ratios  # type: ignore[return-value]

    def _key(self, task: TrainingTask, index: int) -> bytes:
        return task.passes.key("ridge and Gram", task.train, index, self.alpha)

    def _build(self, state: Tensors, block: nn.Module | None) -> nn.Module:
        return RidgeModule(**state)

    def _dim(self, fitted: nn.Module) -> int:
        return int(fitted.bias.shape[1])  # type: ignore[index]

    def _shapes(self, block: nn.Module | None, dim: int, dtype: torch.dtype) -> Shapes:
        weight = ((dim, dim), dtype)
        return {"token_weight": weight, "mean_weight": weight, "bias": ((1, dim), dtype)}
