"""Training of block students: loss, sampling, schedule, early stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._utils.progress import Progress, log
from skanomaly_vit.distillation._checkpoints import Checkpoints, Part
from skanomaly_vit.distillation._trained import Trained, below

#: Name of the checkpoint part that all students share.
_ALL = "all"


@dataclass(frozen=True)
class Schedule:
    """Parameters of training; see `BlockStudent`, and `BlockDistillation` for `batch_size`."""

    max_epochs: int
    learning_rate: float
    learning_rate_schedule: str
    patience: int
    batch_size: int


@dataclass
class Student:
    """A student block in training, with its optimizer and its best state so far.

    `best` is empty without held-out images to choose it.

    A batch comes in one or several parts: call `learn` for each, then `step`. `_n_seen` counts the
    images of the batch so far; the parameters hold their mean gradient.

    A block in half precision learns in float32, since steps are far smaller than weights; `finish`
    rounds it to its own type, `dtype`.
    """

    block: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    dtype: torch.dtype
    best_loss: float = math.inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    epochs_without_gain: int = 0
    stopped: bool = False
    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    _n_seen: int = field(default=0, init=False)

    def learn(self, call: BlockCall) -> float:
        """Accumulate the gradient of mean (S(h_{j-1}) - h_j)^2 of a batch or a part of one."""
        call, learning = call.in_full_precision(), list(self.block.parameters())
        with torch.enable_grad():
            loss = nn.functional.mse_loss(call.replay(self.block), call.output)
            # Not `backward`: if it runs out of memory, some parameters already have their share.
            gradients = torch.autograd.grad(loss, learning, allow_unused=True)
        n_images = len(call.output)
        for parameter, gradient in zip(learning, gradients, strict=True):
            if parameter.grad is None or gradient is None:
                parameter.grad = gradient
            else:
                parameter.grad.lerp_(gradient, n_images / (self._n_seen + n_images))
        self._n_seen += n_images
        return loss.item()

    def step(self) -> None:
        """Take one optimizer step with the gradient of a batch."""
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._n_seen = 0

    def loss(self, call: BlockCall) -> float:
        """Mean (S(h_{j-1}) - h_j)^2 of a batch, without learning from it."""
        call = call.in_full_precision()
        return nn.functional.mse_loss(call.replay(self.block), call.output).item()

    def judge(self, patience: int) -> None:
        """Keep the state if it is the best on held-out images so far; stop after `patience`."""
        if self.valid_loss[-1] < self.best_loss:
            self.best_loss, self.epochs_without_gain = self.valid_loss[-1], 0
            self.best = copy.deepcopy(self.block.state_dict())
            return
        self.epochs_without_gain += 1
        self.stopped = self.epochs_without_gain >= patience

    def part(self) -> Part:
        """State for a checkpoint."""
        adam = self.optimizer.state_dict()
        tensors: dict[str, torch.Tensor] = {}
        for kind, state in {"block": self.block.state_dict(), "best": self.best}.items():
            tensors |= {f"{kind}/{name}": value for name, value in state.items()}
        for number, state in adam["state"].items():
            tensors |= {f"adam/{number}/{name}": value for name, value in state.items()}
        return {
            "groups": adam["param_groups"],
            "scheduler": self.scheduler.state_dict(),
            "epochs_without_gain": self.epochs_without_gain,
            "stopped": self.stopped,
            "train_loss": self.train_loss,
            "valid_loss": self.valid_loss,
        }, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, part: Part) -> None:
        """Restore the state that `part` returned."""
        values, tensors = part
        parts = {kind: below(kind, tensors) for kind in ("block", "best", "adam")}
        self.block.load_state_dict(parts["block"])
        device = next(self.block.parameters()).device
        self.best = {name: value.to(device) for name, value in parts["best"].items()}
        numbers = {name.partition("/")[0] for name in parts["adam"]}
        states = {int(number): below(number, parts["adam"]) for number in numbers}
        # JSON turned tuples into lists.
        groups = [group | {"betas": tuple(group["betas"])} for group in values["groups"]]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.scheduler.load_state_dict(values["scheduler"])
        self.epochs_without_gain, self.stopped = values["epochs_without_gain"], values["stopped"]
        self.train_loss, self.valid_loss = values["train_loss"], values["valid_loss"]
        self.best_loss = min(self.valid_loss, default=math.inf)

    def finish(self) -> Trained:
        """Freeze the best block, or the last one without held-out images."""
        if self.best:
            self.block.load_state_dict(self.best)
        student = self.block.requires_grad_(False).to(self.dtype)
        return Trained(student, self.train_loss, self.valid_loss)


def new_student(block: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy the architecture of a teacher `block`, with weights drawn from `generator`.

    Weight matrices and position-bias tables are drawn from a normal distribution of standard
    deviation 0.02 cut at two deviations (the initialization of Vision Transformers, Dosovitskiy
    et al. 2021); scales of norms and layer scales start at 1, biases at 0. Some pre-trainings
    start layer scales near 0, which would waste the first epochs.

    Parameters
    ----------
    block : nn.Module
        A teacher block.
    generator : torch.Generator
        On the CPU, so that draws do not depend on the device of `block`.

    Returns
    -------
    student : nn.Module
        In eval mode (no dropout, which would use the global random state), on the device of
        `block`, with gradients.
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
    passes: TeacherPasses,
    blocks: Collection[int],
    train: np.ndarray,
    validation: np.ndarray,
    *,
    schedule: Schedule,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints,
    verbose: int = 0,
) -> tuple[dict[int, Trained], list[float]]:
    """Train one student for each of the teacher's `blocks`.

    Each pass of the teacher over a batch serves the step of every student that has not stopped.

    Parameters
    ----------
    passes : TeacherPasses
    blocks : collection of int
        Indices of the blocks to imitate.
    train, validation : ndarray of int
        Indices of the images to learn from, and of those that choose the best epoch.
    schedule : Schedule
    seed : int
        Seed of the initial weights, and of the order of images. A student depends on the seed and
        on its block, not on the other students.
    progress : Progress
        Gets an ``epoch`` task per epoch with a ``batch`` task per batch.
    checkpoints : Checkpoints
        Checkpoints of the students; their steps are epochs.
    verbose : int

    Returns
    -------
    trained : dict of int to Trained
    seconds : list of float
        Duration of each epoch.

    Raises
    ------
    ValueError
        If a student's loss is not finite.
    """
    n_batches = math.ceil(len(train) / schedule.batch_size)
    n_valid_batches = math.ceil(len(validation) / schedule.batch_size)
    students = {
        index: _in_training(block, _generator(seed, 1 + index), schedule, n_batches)
        for index, block in passes.teacher.copy_blocks(blocks).items()
    }
    shuffler = _generator(seed, 0)
    seconds: list[float] = []
    _, parts = checkpoints.latest([*map(str, students), _ALL], verbose)
    if parts:
        for index, student in students.items():
            student.restore(parts[str(index)])
        shuffler.set_state(parts[_ALL][1]["shuffler"])
        seconds = parts[_ALL][0]["seconds"]
    while len(seconds) < schedule.max_epochs and not progress.stop_requested:
        active = {index: student for index, student in students.items() if not student.stopped}
        if not active:
            break
        started = time.perf_counter()
        with progress.task("epoch", n_batches + n_valid_batches) as task:
            order = train[torch.randperm(len(train), generator=shuffler).numpy()]
            _run_epoch(passes, order, active, schedule, task.track, learning=True)
            if len(validation):
                _run_epoch(passes, validation, active, schedule, task.track, learning=False)
                for student in active.values():
                    student.judge(schedule.patience)
        seconds.append(time.perf_counter() - started)
        _report(verbose, active, seconds, schedule)
        checkpoints.save(len(seconds), _parts(students, shuffler, seconds))
    return {index: student.finish() for index, student in students.items()}, seconds


def _parts(
    students: Mapping[int, Student], shuffler: torch.Generator, seconds: list[float]
) -> Iterator[tuple[str, Part]]:
    """Yield the parts of a checkpoint one by one: they are large."""
    yield _ALL, ({"seconds": seconds}, {"shuffler": shuffler.get_state()})
    for index, student in students.items():
        yield str(index), student.part()


def _generator(*entropy: int) -> torch.Generator:
    state = np.random.SeedSequence(entropy).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _in_training(
    block: nn.Module, generator: torch.Generator, schedule: Schedule, n_batches: int
) -> Student:
    dtype = next(block.parameters()).dtype
    student = new_student(block.to(torch.promote_types(dtype, torch.float32)), generator)
    optimizer = torch.optim.Adam(student.parameters(), lr=schedule.learning_rate)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    n_steps = schedule.max_epochs * n_batches
    # A cycle of a single step would be its end, where the rate is almost zero.
    if schedule.learning_rate_schedule == "one_cycle" and n_steps > 1:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=schedule.learning_rate, total_steps=n_steps
        )
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Student(student, optimizer, scheduler, dtype)


def _run_epoch(
    passes: TeacherPasses,
    indices: np.ndarray,
    students: Mapping[int, Student],
    schedule: Schedule,
    track: Callable[[Iterator[Any]], Iterator[Any]],
    *,
    learning: bool,
) -> None:
    """Run one pass of the teacher; append each student's mean loss over the images."""
    loss_of = Student.learn if learning else Student.loss
    totals = dict.fromkeys(students, 0.0)
    n_images = 0

    def visit(call: BlockCall) -> None:
        totals[call.index] += loss_of(students[call.index], call) * len(call.output)

    # Not inference_mode: autograd refuses to save its tensors for a student's backward pass.
    with torch.no_grad():
        for features in passes.run(indices, students.keys(), visit, track=track):
            n_images += len(features)
            if learning:
                for student in students.values():
                    student.step()
    for index, total in totals.items():
        if not math.isfinite(total):
            raise ValueError(
                f"The student of block {index} (counted from 0) diverged: its loss is {total} with "
                f"learning_rate={schedule.learning_rate}. Pass a smaller learning_rate, or check "
                "the backbone's weights for NaN."
            )
        student = students[index]
        (student.train_loss if learning else student.valid_loss).append(total / n_images)


def _report(
    verbose: int, students: Mapping[int, Student], seconds: list[float], schedule: Schedule
) -> None:
    train, valid = (
        [getattr(student, kind)[-1] for student in students.values() if getattr(student, kind)]
        for kind in ("train_loss", "valid_loss")
    )
    log(
        verbose,
        "epoch %d/%d: mean student loss %.4g%s, %.1f s",
        len(seconds),
        schedule.max_epochs,
        np.mean(train),
        f", held out {np.mean(valid):.4g}" if valid else "",
        seconds[-1],
    )
