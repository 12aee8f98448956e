"""One pass of the teacher: both features of every image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from skanomaly_vit._patches import Observer
from skanomaly_vit._teacher import BlockCall, Visitor, to_numpy

#: A pass of the teacher over some images: which blocks to visit, with what -> features by batch.
Pass: TypeAlias = Callable[[Collection[int], Visitor], Iterable[torch.Tensor]]


@torch.inference_mode()
def extract_batches(
    teacher_pass: Pass, students: Mapping[int, nn.Module], observer: Observer | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pre-trained and discrepancy features of the images of a pass, batch by batch.

    Parameters
    ----------
    teacher_pass : callable
        Runs the teacher over the images, batch by batch.
    students : mapping of int to nn.Module
        The student of each block that is to be scored; may be empty.
    observer : Observer or None
        Looks at the patches on the way.

    Yields
    ------
    features : ndarray of shape (batch, dim)
        z_p, in the teacher's floating type; float32 if that is bfloat16.
    discrepancies : ndarray of shape (batch, n_students)
        z_f, the blocks in ascending order: mean over tokens and channels of
        (S_j(h_{j-1}) - h_j)^2 (Transformaly, section 3).
    """
    # Of the parts in which a batch may have to be worked on.
    errors: dict[int, list[np.ndarray]] = {index: [] for index in sorted(students)}

    def visit(call: BlockCall) -> None:
        error = column = None
        if call.index in students:
            difference = call.replay(students[call.index]) - call.output
            error = difference.square().mean(dim=2)  # (batch, tokens, dim) -> (batch, tokens)
            column = to_numpy(error.mean(dim=1))
        if observer is not None:
            observer.observe(call, error)
        # Last, when the device cannot run out of memory any more.
        if column is not None:
            errors[call.index].append(column)

    blocks = {*students, *(observer.blocks if observer is not None else ())}
    for batch in teacher_pass(blocks, visit):
        features = to_numpy(batch)
        columns = [np.concatenate(column) for column in errors.values()]
        none = np.empty((len(features), 0), features.dtype)
        for column in errors.values():
            column.clear()
        yield features, np.stack(columns, axis=1) if columns else none


def extract(
    teacher_pass: Pass, students: Mapping[int, nn.Module], observer: Observer | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `extract_batches`, all batches in one."""
    return concatenate(extract_batches(teacher_pass, students, observer))


def concatenate(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Features and discrepancies of all batches; those in which no image could be read left out."""
    found = [batch for batch in batches if len(batch[0])]
    if not found:
        return np.empty((0, 0)), np.empty((0, 0))
    features, discrepancies = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(discrepancies)
