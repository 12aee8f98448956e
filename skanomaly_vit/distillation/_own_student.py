"""User-defined students, fitted block by block."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall, in_full_precision
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._utils.composition import seed_estimator
from skanomaly_vit._utils.progress import log
from skanomaly_vit.distillation._student import BaseStudent, TrainingTask
from skanomaly_vit.distillation._trained import Trained


class TokenBatches:
    """Training data of a student: tokens before and after a block, batch by batch.

    Each iteration is a pass over the images: it yields pairs of tensors (batch, tokens, dim), the
    tokens h_{j-1} before the block and h_j after it, in float32 if the backbone is in half
    precision. The backbone runs once if
    `activation_cache` holds its tokens.
    """

    def __init__(self, passes: TeacherPasses, indices: np.ndarray, block: int) -> None:
        self._passes = passes
        self._indices = indices
        self._block = block

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        calls: list[BlockCall] = []
        for _ in self._passes.run(self._indices, [self._block], calls.append, in_parts=False):
            call = calls.pop()
            yield in_full_precision(call.tokens), in_full_precision(call.output)


class OwnStudentModule(nn.Module):
    """A fitted user-defined student, called like a block."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict h_j, shape (batch, tokens, dim), from h_{j-1}; ignores other arguments."""
        tokens = in_full_precision(tokens)
        imitated = self.student.predict(tokens)
        if not torch.is_tensor(imitated) or imitated.shape != tokens.shape:
            found = tuple(imitated.shape) if hasattr(imitated, "shape") else type(imitated).__name__
            raise ValueError(
                f"{type(self.student).__name__}.predict gives {found} for tokens of shape "
                f"{tuple(tokens.shape)}; a student must predict a torch tensor of that shape"
            )
        return imitated.to(tokens)

    def digest(self) -> bytes:
        """Digest of the fitted estimator."""
        return joblib.hash(self.student).encode()


class OwnStudent(BaseStudent):
    """Any estimator with ``fit(batches)`` and ``predict(tokens)``, cloned for each block."""

    def __init__(self, student: Any) -> None:
        self.student = student

    def _fit_blocks(
        self, task: TrainingTask, blocks: Sequence[int]
    ) -> tuple[dict[int, Trained], list[float]]:
        started = time.perf_counter()
        passes = task.passes.passes
        trained = {}
        with task.progress.task("epoch", len(blocks)) as progress:
            for index in progress.track(iter(blocks)):
                student = seed_estimator(clone(self.student), task.seed)
                student.fit(TokenBatches(passes, task.train, index))
                module = OwnStudentModule(copy.deepcopy(student))
                losses = [_mean_loss(module, TokenBatches(passes, task.train, index))]
                trained[index] = Trained(module, losses, [])
                log(task.verbose, "student of block %d: loss %.4g", index, losses[0])
        return trained, [time.perf_counter() - started]


@torch.inference_mode()
def _mean_loss(module: nn.Module, batches: TokenBatches) -> float:
    total, n_images = 0.0, 0
    for tokens, output in batches:
        total += float((module(tokens) - output).square().mean()) * len(output)
        n_images += len(output)
    return total / n_images
