"""Saving and loading of fitted students."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from skanomaly_vit.distillation._by_name import STUDENTS
from skanomaly_vit.distillation._distillation import BlockDistillation
from skanomaly_vit.distillation._gram import RidgeGram
from skanomaly_vit.distillation._student import StorableStudent
from skanomaly_vit.persistence._record import StateRecord, name_of


class Blocks(Protocol):
    """Blocks of a backbone, for their architecture."""

    def block(self, index: int) -> torch.nn.Module:
        """Return one of them, with any weights."""


def describe_student(student: Any) -> dict[str, Any]:
    """JSON for an unfitted student, as a parameter holds it.

    Raises
    ------
    ValueError
        If it is not of this package.
    """
    name = type(student).__name__
    if type(student) not in STUDENTS.values():
        raise ValueError(
            f"student={name}(...) is not of skanomaly-vit, so a model file cannot hold it. "
            "Use RidgeStudent or BlockStudent, or joblib.dump after reading SECURITY.md."
        )
    record = StateRecord({}, {}, "student")
    record.write_parameters(student)
    return {"class": name, **record.values}


def build_student(record: StateRecord) -> StorableStudent:
    """The inverse of `describe_student`."""
    name = record.read("class", str)
    classes = {student.__name__: student for student in STUDENTS.values()}
    if name not in classes:
        raise ValueError(f"{record.name} is of the unknown class {name!r}")
    return record.read_parameters(classes[name])


def write_distillation(record: StateRecord, distillation: BlockDistillation) -> None:
    """Write students, in the type of `student_dtype`, and the history of their losses."""
    record.write_parameters(distillation, {"student": describe_student})
    students, student = distillation.students_, distillation._student
    stored = _stored_dtype(distillation)
    record.write(
        block_indices=[int(index) for index in distillation.block_indices_],
        fitted_student=describe_student(student),
        running_dtype=name_of(distillation._running_dtype),
        stored_dtype=name_of(stored),
        history=[_write_epoch(epoch) for epoch in distillation.history_],
    )
    if not student._copies_blocks:
        record.write(dim=student._dim(students[0]))
    kept = zip(students, distillation._grams, strict=True)
    for index, (fitted, gram) in zip(distillation.block_indices_, kept, strict=True):
        part = record.write_part("students").write_part(str(index))
        for name, value in fitted.state_dict().items():
            part.write_tensor(name, value.to(_stored_as(value.dtype, stored)))
        if gram is not None:
            gram.write_state(part.write_part("gram"))


def read_distillation(record: StateRecord, blueprint: Blocks) -> BlockDistillation:
    """The inverse of `write_distillation`, without a backbone."""
    distillation = record.read_parameters(BlockDistillation, {"student": build_student})
    blocks = record.read_list("block_indices", int)
    if not blocks or blocks != sorted(set(blocks)) or blocks[0] < 0:
        raise ValueError(f"{record.name}.block_indices is {blocks}")
    running, stored = (record.read_dtype(name) for name in ("running_dtype", "stored_dtype"))
    student = build_student(record.read_part("fitted_student"))
    dim = 0 if student._copies_blocks else record.read_int("dim", 1)
    students, grams, parts = [], [], record.read_part("students")
    for index in blocks:
        part = parts.read_part(str(index))
        block = blueprint.block(index) if student._copies_blocks else None
        state = {
            name: part.read_tensor(name, *shape, dtype=_stored_as(dtype, stored)).to(dtype)
            for name, (shape, dtype) in student._shapes(block, dim, running).items()
        }
        students.append(student._build(state, block).to(running))
        has_gram = "gram" in part.values  # not in files of older versions
        grams.append(RidgeGram.read_state(part.read_part("gram"), dim) if has_gram else None)
        part.close()
    parts.close()
    distillation.students_, distillation.block_indices_ = students, blocks
    distillation._running_dtype, distillation._student = running, student
    distillation._grams = grams
    epochs = record.read_list("history", dict)
    distillation.history_ = [
        _read_epoch(StateRecord(epoch, {}, f"{record.name}.history"), len(blocks))
        for epoch in epochs
    ]
    record.close()
    return distillation


def _stored_dtype(distillation: BlockDistillation) -> torch.dtype:
    """Type to which students were rounded, or else the one in which they run."""
    running = distillation._running_dtype
    if distillation.student_dtype is None:
        return running
    stored = getattr(torch, distillation.student_dtype)
    # The parameter may have changed after the fit; the file must lose nothing.
    values = [v for s in distillation.students_ for v in s.state_dict().values()]
    is_rounded = all(torch.equal(v, v.to(_stored_as(v.dtype, stored)).to(v.dtype)) for v in values)
    return stored if is_rounded else running


def _stored_as(dtype: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """Type of a tensor in the file: only floating types change."""
    return stored if dtype.is_floating_point else dtype


def _write_epoch(epoch: dict[str, Any]) -> dict[str, Any]:
    """Convert an epoch to JSON; nan, the loss of a stopped student, becomes null."""
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
