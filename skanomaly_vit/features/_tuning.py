"""Tuning of a backbone's last blocks: learning parameters, best state, early stopping."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall, look_away
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._utils.progress import Progress, log

#: timm's names of the norms after the last block, on tokens or on the pooled vector.
_FINAL_NORMS = ("norm", "fc_norm")

Batch = TypeVar("Batch")

#: Wraps the iterator of batches, to follow progress.
Track = Callable[[Iterator[Any]], Iterator[Any]]


class _Skip(nn.Module):
    """Replaces a block whose output is known."""

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tokens  # [B, N, C]


class TunedNetwork:
    """A copy of a teacher's network whose last blocks and final norm can learn.

    It stays in eval mode: without dropout, it needs no global random state.

    Parameters
    ----------
    teacher : Teacher
        Stays unchanged.
    n_blocks : int
        Number of last blocks that learn.

    Attributes
    ----------
    first : int
        Index of the first block that learns.
    """

    def __init__(self, teacher: Teacher, n_blocks: int) -> None:
        n_there = len(teacher.blocks)
        if n_blocks > n_there:
            raise ValueError(
                f"n_tuned_blocks={n_blocks}, but the backbone has {n_there} blocks. Pass "
                f"n_tuned_blocks={n_there} or fewer."
            )
        self.first = n_there - n_blocks
        self._whole = _copy_of(teacher)
        blocks = self._whole.blocks
        norms = [getattr(self._whole.model, name, None) for name in _FINAL_NORMS]
        learning = blocks[self.first :] + [norm for norm in norms if norm is not None]
        known = {id(block): _Skip() for block in blocks[: self.first]}
        self._tail = _copy_of(self._whole, known | {id(module): module for module in learning})
        for module in learning:
            module.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self._whole.device

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name."""
        named = self._whole.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (batch, dim) of normalized images (batch, 3, height, width)."""
        return self._whole(images, blocks=(), visit=look_away)

    def features_from(self, call: BlockCall) -> torch.Tensor:
        """Pooled features (batch, dim) from the teacher's call of the block `first`."""
        height, width = self._tail.preprocessing.image_size
        # Families pool tokens differently, so each network does it itself: it runs on blank images,
        # and their tokens are replaced before the first block that learns.
        # [1, 3, H, W] -> [B, 3, H, W]
        blank = torch.zeros(1, 3, height, width).expand(len(call.tokens), -1, -1, -1)
        block = self._tail.blocks[self.first]

        def exchange(*ignored: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return call.args, call.kwargs

        with block.register_forward_pre_hook(exchange, with_kwargs=True):
            return self._tail(blank, blocks=(), visit=look_away)

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the learned parameters, on the CPU."""
        return {
            name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()
        }


@torch.no_grad()
def tuned_copy(teacher: Teacher, state: dict[str, torch.Tensor]) -> Teacher:
    """A copy of `teacher` with the parameters of `state`, as `TunedNetwork.state` gives them."""
    tuned = _copy_of(teacher)
    parameters = dict(tuned.model.named_parameters())
    for name, value in state.items():
        parameters[name].copy_(value)
    return tuned


def _copy_of(teacher: Teacher, known: Mapping[int, nn.Module] | None = None) -> Teacher:
    """A copy of a teacher; `known` as in `Teacher.copy_model`."""
    return Teacher(teacher.copy_model(known), teacher.preprocessing, teacher.device)


class Objective(ABC, Generic[Batch]):
    """A loss that tuning minimizes."""

    @abstractmethod
    def batches(self, indices: np.ndarray, seed: int, track: Track) -> Iterator[Batch]:
        """Batches of the images at `indices`, in order; `seed` seeds random changes to them."""

    @abstractmethod
    def n_batches(self, n_images: int) -> int:
        """Number of `batches` of `n_images`."""

    @abstractmethod
    def losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each image of a batch: (images,)."""


@dataclass(frozen=True)
class TuningSchedule:
    """Parameters of the tuning.

    Attributes
    ----------
    max_epochs, learning_rate
        See the transformers.
    patience : int
        Tuning ends after this number of epochs without a smaller held-out loss.
    min_share : float
        Tuning ends where the held-out loss falls below this share of the initial one; that state
        does not count.
    momentum : float
        Momentum of stochastic gradient descent.
    max_norm : float
        Clips the norm of the gradient.
    weight_decay : float
        The value of the authors of both methods.
    """

    max_epochs: int
    learning_rate: float
    patience: int
    min_share: float = 0.0
    momentum: float = 0.0
    max_norm: float = math.inf
    weight_decay: float = 5e-5


@dataclass
class Tuned:
    """The best state so far, and its history.

    Attributes
    ----------
    state : dict of str to torch.Tensor
        See `TunedNetwork.state`.
    initial_loss : float
        Loss on the held-out images before tuning; nan without such images.
    n_epochs : int
        Epochs that led to `state`; 0 if none improved the loss.
    history : list of dict
        Records of all epochs.
    best_loss : float
        Loss of `state` on the held-out images.
    """

    state: dict[str, torch.Tensor]
    initial_loss: float
    n_epochs: int
    history: list[dict[str, Any]]
    best_loss: float

    def judge(self, network: TunedNetwork, schedule: TuningSchedule) -> bool:
        """Keep the state after an epoch if it is the best so far; True to go on."""
        epoch, loss = len(self.history), self.history[-1].get("valid_loss")
        if loss is None:
            self.state, self.n_epochs = network.state(), epoch
            return True
        if loss < schedule.min_share * self.initial_loss:
            return False
        if loss < self.best_loss:
            self.state, self.n_epochs, self.best_loss = network.state(), epoch, loss
        return epoch - self.n_epochs < schedule.patience


@torch.no_grad()
def tune(
    network: TunedNetwork,
    objective: Objective[Any],
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    schedule: TuningSchedule,
    seed: int,
    progress: Progress,
    verbose: int = 0,
) -> Tuned:
    """Tune a network by stochastic gradient descent.

    Parameters
    ----------
    network : TunedNetwork
    objective : Objective
    train, held_out : ndarray of int
        Indices of the images to learn from, and to choose the best state by. Without held-out
        images the last state counts.
    schedule : TuningSchedule
    seed : int
        Seeds the order of images, and random changes to them.
    progress : Progress
        Gets an ``epoch`` task per epoch with a ``batch`` task per batch.
    verbose : int

    Raises
    ------
    ValueError
        If a loss is not finite.
    """
    optimizer = torch.optim.SGD(
        network.parameters.values(),
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )

    def step(batch: Any) -> torch.Tensor:
        with torch.enable_grad():
            losses = objective.losses(batch)
            optimizer.zero_grad(set_to_none=True)
            losses.mean().backward()
        nn.utils.clip_grad_norm_(network.parameters.values(), schedule.max_norm)
        optimizer.step()
        return losses.detach()

    def held_out_loss(track: Track = iter) -> float:
        # The same views of the images in every epoch, so that losses can be compared.
        return _mean(objective.losses, objective.batches(held_out, _derive(seed, 0), track))

    initial = held_out_loss() if len(held_out) else math.nan
    tuned = Tuned(network.state(), initial, 0, [], best_loss=initial)
    n_batches = sum(objective.n_batches(len(indices)) for indices in (train, held_out))
    going_on = True
    while going_on and len(tuned.history) < schedule.max_epochs and not progress.stop_requested:
        started, epoch = time.perf_counter(), len(tuned.history) + 1
        with progress.task("epoch", n_batches) as task:
            order = np.random.default_rng(_derive(seed, epoch, 0)).permutation(train)
            batches = objective.batches(order, _derive(seed, epoch, 1), task.track)
            record = {"epoch": epoch, "train_loss": _mean(step, batches)}
            if len(held_out):
                record["valid_loss"] = held_out_loss(task.track)
        tuned.history.append(record | {"seconds": time.perf_counter() - started})
        _check_and_report(tuned.history[-1], schedule, verbose)
        going_on = tuned.judge(network, schedule)
    return tuned


def _mean(losses_of: Callable[[Any], torch.Tensor], batches: Iterator[Any]) -> float:
    """Mean loss over the images of all batches."""
    return float(torch.cat([losses_of(batch).cpu().double() for batch in batches]).mean())


def _derive(*entropy: int) -> int:
    """A seed derived from others."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _check_and_report(record: dict[str, Any], schedule: TuningSchedule, verbose: int) -> None:
    losses = [record[kind] for kind in ("train_loss", "valid_loss") if kind in record]
    if not all(map(math.isfinite, losses)):
        raise ValueError(
            f"The tuned blocks diverged: losses {losses} in epoch {record['epoch']} with "
            f"learning_rate={schedule.learning_rate}. Pass a smaller learning_rate, or check the "
            "backbone's weights for NaN."
        )
    log(
        verbose,
        "epoch %d/%d: loss %.4g%s, %.1f s",
        record["epoch"],
        schedule.max_epochs,
        record["train_loss"],
        f", held out {record['valid_loss']:.4g}" if "valid_loss" in record else "",
        record["seconds"],
    )
