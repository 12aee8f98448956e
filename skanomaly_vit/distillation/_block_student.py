"""Block students: copies of the teacher's blocks, trained from random weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import nn

from skanomaly_vit._caching.memory import Tensors
from skanomaly_vit._utils.compat import Interval, StrOptions
from skanomaly_vit.distillation._block_training import Schedule
from skanomaly_vit.distillation._sharing import train_blocks
from skanomaly_vit.distillation._student import Shapes, StorableStudent, TrainingTask
from skanomaly_vit.distillation._trained import Trained


class BlockStudent(StorableStudent):
    """A block of the teacher's architecture, started at random and trained by Adam.

    The student of the paper [1]_, section 3.2: it minimizes the mean squared error
    (S_j(h_{j-1}) - h_j)^2 over tokens and channels. `BlockDistillation` trains it and keeps, block
    by block, the epoch with the smallest error on held-out images.

    Parameters
    ----------
    max_epochs : int, default=3
        Passes over the training images.
    learning_rate : float, default=1e-3
        Learning rate of Adam; the peak under the one-cycle schedule.
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        ``"one_cycle"`` rises to `learning_rate` and falls to zero within `max_epochs`, while
        Adam's beta1 falls from 0.95 to 0.85 and rises again; a fit of a single
        step uses `learning_rate`.
    patience : int, default=3
        Number of epochs without improvement on held-out images after which a student's training
        stops.

    See Also
    --------
    RidgeStudent : A linear map in closed form: faster, and as a rule more accurate.
    BlockDistillation : Fits a student for each of the last blocks of a backbone.

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.

    Examples
    --------
    The paper's schedule:

    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.distillation import BlockStudent
    >>> student = BlockStudent(
    ...     max_epochs=30, learning_rate=1e-4, learning_rate_schedule="constant", patience=30
    ... )
    >>> detector = TransformalyDetector(student=student)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions({"one_cycle", "constant"})],
        "patience": [Interval(Integral, 1, None, closed="left")],
    }
    _chooses: ClassVar[bool] = True
    _copies_blocks: ClassVar[bool] = True

    def __init__(
        self,
        max_epochs: int = 3,
        learning_rate: float = 1e-3,
        learning_rate_schedule: str = "one_cycle",
        patience: int = 3,
    ) -> None:
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.patience = patience

    @property
    def _n_epochs(self) -> int:
        return self.max_epochs

    def _fit_blocks(
        self, task: TrainingTask, blocks: Sequence[int]
    ) -> tuple[dict[int, Trained], list[float]]:
        return train_blocks(
            task.passes,
            blocks,
            (task.train, task.validation),
            self._schedule(task),
            seed=task.seed,
            progress=task.progress,
            checkpoints=task.checkpoints,
            verbose=task.verbose,
        )

    def _key(self, task: TrainingTask, index: int) -> bytes:
        held_out = task.passes.key("held out", task.validation)
        schedule = self._schedule(task)
        return task.passes.key("block", task.train, index, held_out, task.seed, schedule)

    def _build(self, state: Tensors, block: nn.Module | None) -> nn.Module:
        student = copy.deepcopy(block).eval().requires_grad_(False)  # type: ignore[union-attr]
        student.load_state_dict(state)
        return student

    def _shapes(self, block: nn.Module | None, dim: int, dtype: torch.dtype) -> Shapes:
        state = block.state_dict()  # type: ignore[union-attr]
        return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}

    def _schedule(self, task: TrainingTask) -> Schedule:
        return Schedule(**self.get_params(deep=False), batch_size=task.passes.batch_size)
