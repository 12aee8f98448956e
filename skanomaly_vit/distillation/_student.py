"""Students: the parts that imitate a block, and the protocol for a student of your own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._caching.memory import Tensors
from skanomaly_vit._utils.progress import Progress
from skanomaly_vit.distillation._checkpoints import Checkpoints
from skanomaly_vit.distillation._trained import Trained

#: Name -> shape and type of a tensor.
Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class TrainingTask:
    """Images and circumstances that students are fitted on.

    Attributes
    ----------
    passes : CachedPasses
    train, validation : ndarray of int
        Positions of the images to learn from, and of those to choose the best state by.
    seed : int
    progress : Progress
    checkpoints : Checkpoints
    verbose : int
    """

    passes: CachedPasses
    train: np.ndarray
    validation: np.ndarray
    seed: int
    progress: Progress
    checkpoints: Checkpoints
    verbose: int

    def require_unchanged(self) -> None:
        """Raise an error if an image is another than before, so that nothing is kept of it."""
        self.passes.require_unchanged(np.concatenate([self.train, self.validation]))


class BaseStudent(BaseEstimator, ABC):
    """Base of the parts that fit students of many blocks at once.

    Attributes
    ----------
    _chooses : bool
        Whether held-out images choose among states, so that they cannot calibrate.
    """

    _chooses: ClassVar[bool] = False

    @property
    def _n_epochs(self) -> int:
        """Passes over the training images, at most."""
        return 1

    @abstractmethod
    def _fit_blocks(
        self, task: TrainingTask, blocks: Sequence[int]
    ) -> tuple[dict[int, Trained], list[float]]:
        """Fit a student of each of `blocks`; with the seconds of each epoch."""


class StorableStudent(BaseStudent):
    """Base of the students that `memory`, checkpoints and model files can hold.

    Attributes
    ----------
    _copies_blocks : bool
        Whether a fitted student has the architecture of the teacher's block.
    """

    _copies_blocks: ClassVar[bool] = False

    @abstractmethod
    def _key(self, task: TrainingTask, index: int) -> bytes:
        """Key of the student of a block in `memory`: all that its weights depend on."""

    @abstractmethod
    def _build(self, state: Tensors, block: nn.Module | None) -> nn.Module:
        """Make a fitted student of its weights, and of the teacher's block if it copies that."""

    def _dim(self, fitted: nn.Module) -> int:
        """Number of channels of a fitted student that copies no block."""
        return 0

    @abstractmethod
    def _shapes(self, block: nn.Module | None, dim: int, dtype: torch.dtype) -> Shapes:
        """Shape and type of each tensor of a fitted student.

        Parameters
        ----------
        block : nn.Module or None
            The teacher's block, if it copies that.
        dim : int
            Number of channels of a token, if it does not.
        dtype : torch.dtype
            Of the tokens.
        """
