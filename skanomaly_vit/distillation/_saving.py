"""Trained students, taken apart for a model file and rebuilt from it."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from skanomaly_vit.distillation._distillation import BlockDistillation, build_student
from skanomaly_vit.distillation._ridge import RidgeStudent
from skanomaly_vit.persistence._record import StateRecord, name_of


class Blocks(Protocol):
    """Tells what the blocks of a backbone are made of."""

    def block(self, index: int) -> torch.nn.Module:
        """One of them, with any weights."""


#: Of a ridge student; `None` stands for the number of channels.
_RIDGE_SHAPES = {"token_weight": (None, None), "mean_weight": (None, None), "bias": (1, None)}


def write_distillation(record: StateRecord, distillation: BlockDistillation) -> None:
    """Write students, in the type that `student_dtype` says, and the history of their losses."""
    record.write_parameters(distillation)
    students: list[Any] = distillation.students_
    is_ridge = isinstance(students[0], RidgeStudent)
    stored = _stored_dtype(distillation)
    record.write(
        block_indices=[int(index) for index in distillation.block_indices_],
        kind="ridge" if is_ridge else "block",
        running_dtype=name_of(distillation._running_dtype),
        stored_dtype=name_of(stored),
        history=[_write_epoch(epoch) for epoch in distillation.history_],
    )
    if is_ridge:
        record.write(dim=int(students[0].bias.shape[1]))
    for index, student in zip(distillation.block_indices_, students, strict=True):
        part = record.write_part("students").write_part(str(index))
        for name, value in student.state_dict().items():
            part.write_tensor(name, value.to(_stored_as(value.dtype, stored)))


def read_distillation(record: StateRecord, blueprint: Blocks) -> BlockDistillation:
    """The inverse of `write_distillation`, without a backbone."""
    distillation = record.read_parameters(BlockDistillation)
    blocks = record.read_list("block_indices", int)
    if not blocks or blocks != sorted(set(blocks)) or blocks[0] < 0:
        raise ValueError(f"{record.name}.block_indices is {blocks}")
    running, stored = (record.read_dtype(name) for name in ("running_dtype", "stored_dtype"))
    kind = record.read("kind", str)
    if kind not in ("ridge", "block"):
        raise ValueError(f"{record.name}.kind is {kind!r}")
    dim = record.read_int("dim", 1) if kind == "ridge" else 0
    students, parts = [], record.read_part("students")
    for index in blocks:
        part = parts.read_part(str(index))
        template = blueprint.block(index) if kind == "block" else None
        shapes = _shapes_of(template, dim, running)
        state = {
            name: part.read_tensor(name, *shape, dtype=_stored_as(dtype, stored)).to(dtype)
            for name, (shape, dtype) in shapes.items()
        }
        students.append(build_student(state, template).to(running))
        part.close()
    parts.close()
    distillation.students_, distillation.block_indices_ = students, blocks
    distillation._running_dtype = running
    epochs = record.read_list("history", dict)
    distillation.history_ = [
        _read_epoch(StateRecord(epoch, {}, f"{record.name}.history"), len(blocks))
        for epoch in epochs
    ]
    record.close()
    return distillation


def _stored_dtype(distillation: BlockDistillation) -> torch.dtype:
    """The type that students were rounded to, or that in which they run."""
    running = distillation._running_dtype
    if distillation.student_dtype is None:
        return running
    stored = getattr(torch, distillation.student_dtype)
    # The parameter may have been set after the fit: nothing is to be lost in the file.
    values = [v for s in distillation.students_ for v in s.state_dict().values()]
    is_rounded = all(torch.equal(v, v.to(_stored_as(v.dtype, stored)).to(v.dtype)) for v in values)
    return stored if is_rounded else running


def _stored_as(dtype: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """Only what is floating changes its type."""
    return stored if dtype.is_floating_point else dtype


def _shapes_of(
    template: torch.nn.Module | None, dim: int, running: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and type of each tensor of a student."""
    if template is not None:
        return {k: (tuple(v.shape), v.dtype) for k, v in template.state_dict().items()}
    return {
        name: (tuple(size or dim for size in sizes), running)
        for name, sizes in _RIDGE_SHAPES.items()
    }


def _write_epoch(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch as JSON has it, where nan, the loss of a student that had stopped, is null."""
    losses: dict[str, Any] = {
        name: [None if math.isnan(value) else float(value) for value in epoch[name]]
        for name in ("train_loss", "valid_loss")
        if name in epoch
    }
    return {"epoch": int(epoch["epoch"]), **losses, "seconds": float(epoch["seconds"])}


def _read_epoch(record: StateRecord, n_blocks: int) -> dict[str, Any]:
    epoch: dict[str, Any] = {"epoch": record.read_int("epoch", 1)}
    for name in ("train_loss", "valid_loss"):
        if name in record.values:
            losses = record.read(name, list)
            if len(losses) != n_blocks:
                raise ValueError(f"{record.name}.{name} has {len(losses)} values, not {n_blocks}")
            numbers = StateRecord(
                {str(i): value for i, value in enumerate(losses) if value is not None}, {}, name
            )
            epoch[name] = [
                math.nan if value is None else numbers.read_number(str(i))
                for i, value in enumerate(losses)
            ]
    epoch["seconds"] = record.read_number("seconds")
    record.close()
    return epoch
