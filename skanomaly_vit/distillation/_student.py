"""Base classes of students, the estimators that imitate blocks of the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    """Images and settings for a fit of students.

    Attributes
    ----------
    passes : CachedPasses
    train, validation : ndarray of int
        Positions of the images to learn from, and of those that choose the best state.
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
    """Base of the estimators that fit students of many blocks at once.

    Attributes
    ----------
    _chooses : bool
        Whether held-out images choose among states, and therefore cannot calibrate.
    """

    _chooses: ClassVar[bool] = False

    def _update_blocks(
        self, passes: CachedPasses, train: np.ndarray, known: Mapping[int, Trained]
    ) -> tuple[dict[int, Trained], dict[int, float]] | None:
        """Fit the students of blocks to more images, without the earlier ones.

        Returns the students, and the mean error of each on the earlier images relative to that of
        the known one; None if these students cannot learn so.
        """
        return None

    @property
    def _n_epochs(self) -> int:
        """Largest number of passes over the training images."""
        return 1

    @abstractmethod
    def _fit_blocks(
        self, task: TrainingTask, blocks: Sequence[int]
    ) -> tuple[dict[int, Trained], list[float]]:
        """Fit a student of each of `blocks`; return them and the seconds of each epoch."""


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
        """Key of a block's student in `memory`: a digest of all that its weights depend on."""

    @abstractmethod
    def _build(self, state: Tensors, block: nn.Module | None) -> nn.Module:
        """Build a fitted student from its weights, and the teacher's block if it copies one."""

    def _dim(self, fitted: nn.Module) -> int:
        """Number of channels of a fitted student that copies no block."""
        return 0

    @abstractmethod
    def _shapes(self, block: nn.Module | None, dim: int, dtype: torch.dtype) -> Shapes:
        """Shape and type of each tensor of a fitted student.

        Parameters
        ----------
        block : nn.Module or None
            The teacher's block, if the student copies one.
        dim : int
            Number of channels of a token, if the student copies none.
        dtype : torch.dtype
            Type of the tokens.
        """
