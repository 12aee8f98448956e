"""Fitted students and their losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skanomaly_vit._caching.memory import Tensors
from skanomaly_vit.distillation._gram import RidgeGram

_STATE, _GRAM = "state", "gram"


@dataclass
class Trained:
    """A student and its losses.

    Attributes
    ----------
    student : nn.Module
        Frozen.
    train_loss, valid_loss : list of float
        Mean squared error over the images, for each epoch of its training; `valid_loss` is empty
        without held-out images.
    gram : RidgeGram or None
        What a ridge student keeps of its training images.
    """

    student: nn.Module
    train_loss: list[float]
    valid_loss: list[float]
    gram: RidgeGram | None = None

    @property
    def n_bytes(self) -> int:
        """Size of the student, and of its Gram matrix."""
        kept = self.gram.arrays.values() if self.gram is not None else ()
        return sum(value.nbytes for value in [*self.student.state_dict().values(), *kept])

    def to_tensors(self) -> Tensors:
        """Student and losses as tensors on the CPU."""
        state = {
            f"{_STATE}/{name}": value.detach().cpu().contiguous()
            for name, value in self.student.state_dict().items()
        }
        losses = {"train_loss": self.train_loss, "valid_loss": self.valid_loss}
        if self.gram is not None:
            state |= {f"{_GRAM}/{k}": torch.from_numpy(v) for k, v in self.gram.arrays.items()}
        return state | {
            name: torch.tensor(values, dtype=torch.float64) for name, values in losses.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Tensors, build: Callable[[Tensors], nn.Module]) -> Trained:
        """The inverse of `to_tensors`; `build` makes a student from its state_dict."""
        train, valid = (tensors[name].tolist() for name in ("train_loss", "valid_loss"))
        kept = {name: value.numpy() for name, value in below(_GRAM, tensors).items()}
        gram = RidgeGram(**kept) if kept else None
        return cls(build(below(_STATE, tensors)), train, valid, gram)


def below(prefix: str, tensors: Tensors) -> Tensors:
    """Tensors whose names start with ``prefix/``, under their names without it."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def history_of(trained: Iterable[Trained], seconds: list[float]) -> list[dict[str, Any]]:
    """Records of the epochs of all students, nan once a student has stopped.

    Parameters
    ----------
    trained : iterable of Trained
        Students in the order of their blocks.
    seconds : list of float
        Duration of each epoch; missing ones count as 0.

    Returns
    -------
    history : list of dict
        Per epoch: ``epoch``, ``train_loss`` and, where images were held out, ``valid_loss``
        (lists, one MSE per block), ``seconds``.
    """
    columns = list(trained)
    train = _by_epoch(record.train_loss for record in columns)
    valid = _by_epoch(record.valid_loss for record in columns)
    history: list[dict[str, Any]] = []
    for i, losses in enumerate(train):
        record: dict[str, Any] = {"epoch": i + 1, "train_loss": losses}
        if valid:
            record["valid_loss"] = valid[i]
        history.append(record | {"seconds": seconds[i] if i < len(seconds) else 0.0})
    return history


def _by_epoch(losses: Iterable[list[float]]) -> list[list[float]]:
    return [list(row) for row in itertools.zip_longest(*losses, fillvalue=math.nan)]
