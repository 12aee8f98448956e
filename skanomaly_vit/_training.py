"""How students are trained: loss, sampling, schedule, stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from skanomaly_vit._progress import Progress, log
from skanomaly_vit._teacher import BlockCall, Teacher

#: indices of training images -> their batches, in that order
BatchesOf = Callable[[np.ndarray], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Schedule:
    """What governs the training of students; see `BlockDistillation` for each meaning."""

    max_epochs: int
    learning_rate: float
    learning_rate_schedule: str
    patience: int
    batch_size: int
    verbose: int = 0


@dataclass
class Student:
    """A student block in training: its optimiser, and the best state it has been in.

    `best` is kept only where images are held out to choose it by.
    """

    block: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    best_loss: float = math.inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    epochs_without_gain: int = 0
    stopped: bool = False

    def step(self, call: BlockCall) -> float:
        """One step of gradient descent on mean (S(h_{j-1}) - h_j)^2 of a batch."""
        if self.stopped:
            return math.nan
        with torch.enable_grad():
            loss = nn.functional.mse_loss(call.replay(self.block), call.output)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def loss(self, call: BlockCall) -> float:
        """Mean (S(h_{j-1}) - h_j)^2 of a batch, without learning from it."""
        if self.stopped:
            return math.nan
        return nn.functional.mse_loss(call.replay(self.block), call.output).item()

    def judge(self, loss: float, patience: int) -> None:
        """Keep the state if it is the best so far on held-out images; stop after `patience`."""
        if self.stopped:
            return
        if loss < self.best_loss:
            self.best_loss, self.epochs_without_gain = loss, 0
            self.best = copy.deepcopy(self.block.state_dict())
            return
        self.epochs_without_gain += 1
        self.stopped = self.epochs_without_gain >= patience

    def finish(self) -> nn.Module:
        """The best block, or the last where none was judged, frozen."""
        if self.best:
            self.block.load_state_dict(self.best)
        return self.block.requires_grad_(False)


def new_student(block: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy the architecture of a teacher `block`, with weights drawn from `generator`.

    Weight matrices and position-bias tables are drawn from a normal distribution of standard
    deviation 0.02 cut at two deviations (as Vision Transformers are initialised, Dosovitskiy
    et al. 2021); scales of norms and layer scales start at 1, biases at 0. A layer scale near
    0, where some pre-trainings start it, would make the first epochs do nothing.

    Parameters
    ----------
    block : nn.Module
        A teacher block.
    generator : torch.Generator
        On the CPU: the same draws whatever the device of `block`.

    Returns
    -------
    student : nn.Module
        In eval mode (no dropout, so that no global random state is used), on the device of
        `block`, gradients on.
    """
    student = copy.deepcopy(block).eval().requires_grad_(True)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(_initial(name, parameter, generator))
    return student


def _initial(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if parameter.ndim < 2:
        return torch.zeros(()) if name.endswith("bias") else torch.ones(())
    draws = torch.empty(parameter.shape)
    return nn.init.trunc_normal_(draws, std=0.02, a=-0.04, b=0.04, generator=generator)


def train_students(
    teacher: Teacher,
    batches_of: BatchesOf,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    n_blocks: int,
    schedule: Schedule,
    seed: int,
    progress: Progress,
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """Train one student for each of the last `n_blocks` blocks of `teacher`.

    Each pass of the teacher over a batch serves the step of every student; no activation
    outlives its block.

    Parameters
    ----------
    teacher : Teacher
    batches_of : callable
        Batches of normalised images for an array of image indices.
    train, validation : ndarray of int
        Indices of the images to learn from, and to choose the best student by.
    n_blocks : int
    schedule : Schedule
    seed : int
        Seed of the initial weights and of the order of images. A student depends on the seed
        and on its block, not on how many other students there are.
    progress : Progress
        Gets an ``epoch`` task per epoch with a ``batch`` task per batch.

    Returns
    -------
    students : list of nn.Module
        Frozen, first the student of the earliest block.
    history : list of dict
        Per epoch: ``epoch``, ``train_loss`` and ``valid_loss`` (lists, one MSE per block; nan
        for a block that has stopped), ``seconds``.
    """
    n_batches = math.ceil(len(train) / schedule.batch_size)
    n_valid_batches = math.ceil(len(validation) / schedule.batch_size)
    students = [
        _in_training(new_student(block, _generator(seed, index)), schedule, n_batches)
        for index, block in teacher.last_blocks(n_blocks)
    ]
    shuffler = _generator(seed, len(teacher.blocks))
    history: list[dict[str, Any]] = []
    for epoch in range(1, schedule.max_epochs + 1):
        started = time.perf_counter()
        with progress.task("epoch", n_batches + n_valid_batches) as task:
            order = train[torch.randperm(len(train), generator=shuffler).numpy()]
            batches = task.track(batches_of(order))
            train_loss = _mean_losses(teacher, students, batches, Student.step)
            _require_finite(train_loss, students, schedule)
            record: dict[str, Any] = {"epoch": epoch, "train_loss": train_loss}
            if len(validation):
                batches = task.track(batches_of(validation))
                record["valid_loss"] = _mean_losses(teacher, students, batches, Student.loss)
                _require_finite(record["valid_loss"], students, schedule)
                for student, loss in zip(students, record["valid_loss"], strict=True):
                    student.judge(loss, schedule.patience)
        history.append(record | {"seconds": time.perf_counter() - started})
        _report(schedule, history[-1])
        if progress.stop_requested or all(student.stopped for student in students):
            break
    return [student.finish() for student in students], history


def _generator(*entropy: int) -> torch.Generator:
    state = np.random.SeedSequence(entropy).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _in_training(block: nn.Module, schedule: Schedule, n_batches: int) -> Student:
    optimizer = torch.optim.Adam(block.parameters(), lr=schedule.learning_rate)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if schedule.learning_rate_schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=schedule.learning_rate,
            total_steps=schedule.max_epochs * n_batches,
        )
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Student(block, optimizer, scheduler)


def _mean_losses(
    teacher: Teacher,
    students: list[Student],
    batches: Iterator[torch.Tensor],
    loss_of: Callable[[Student, BlockCall], float],
) -> list[float]:
    """One teacher pass over `batches`; the mean over images of each student's loss."""
    first = len(teacher.blocks) - len(students)
    totals = np.zeros(len(students))
    n_images = 0

    def visit(call: BlockCall) -> None:
        loss = loss_of(students[call.index - first], call)
        totals[call.index - first] += loss * len(call.output)

    # Not inference_mode: autograd refuses to save its tensors for a student's backward pass.
    with torch.no_grad():
        for images in batches:
            n_images += len(images)
            teacher(images, n_blocks=len(students), visit=visit)
    return (totals / n_images).tolist()


def _require_finite(losses: list[float], students: list[Student], schedule: Schedule) -> None:
    for position, (loss, student) in enumerate(zip(losses, students, strict=True)):
        if not (math.isfinite(loss) or student.stopped):
            raise ValueError(
                f"The student of block {position - len(students)} (counted from the last) "
                f"diverged: its loss is {loss} with learning_rate={schedule.learning_rate}. Pass "
                "a smaller learning_rate, or check the backbone's weights for NaN."
            )


def _report(schedule: Schedule, record: dict[str, Any]) -> None:
    held_out = record.get("valid_loss")
    log(
        schedule.verbose,
        "epoch %d/%d: mean student loss %.4g%s, %.1f s",
        record["epoch"],
        schedule.max_epochs,
        np.nanmean(record["train_loss"]),
        f", held out {np.nanmean(held_out):.4g}" if held_out else "",
        record["seconds"],
    )
