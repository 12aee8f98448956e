"""One pass of the teacher: both features of every image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from skanomaly_vit._patches import Observer
from skanomaly_vit._teacher import BlockCall, Visitor

#: A pass of the teacher over some images: which blocks to visit, with what -> features by batch.
Pass: TypeAlias = Callable[[Collection[int], Visitor], Iterable[torch.Tensor]]


@torch.inference_mode()
def extract(
    teacher_pass: Pass, students: Mapping[int, nn.Module], observer: Observer | None = None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Pre-trained and discrepancy features of all images of a pass.

    Parameters
    ----------
    teacher_pass : callable
        Runs the teacher over the images, batch by batch.
    students : mapping of int to nn.Module
        The student of each block that is to be scored; may be empty.
    observer : Observer or None
        Looks at the patches on the way.

    Returns
    -------
    features : ndarray of shape (n_images, dim)
        z_p, in the teacher's floating type.
    discrepancies : dict of int to ndarray of shape (n_images,)
        z_f, block by block: mean over tokens and channels of (S_j(h_{j-1}) - h_j)^2
        (Transformaly, section 3).
    """
    errors: dict[int, list[np.ndarray]] = {index: [] for index in students}

    def visit(call: BlockCall) -> None:
        error = column = None
        if call.index in students:
            difference = call.replay(students[call.index]) - call.output
            error = difference.square().mean(dim=2)  # (batch, tokens, dim) -> (batch, tokens)
            column = error.mean(dim=1).cpu().numpy()
        if observer is not None:
            observer.observe(call, error)
        # Last, when the device cannot run out of memory any more.
        if column is not None:
            errors[call.index].append(column)

    blocks = {*students, *(observer.blocks if observer is not None else ())}
    features = [batch.cpu().numpy() for batch in teacher_pass(blocks, visit)]
    columns = {index: concatenate(column) for index, column in errors.items()}
    return concatenate(features), columns


def concatenate(batches: list[np.ndarray]) -> np.ndarray:
    """One array of all batches; those in which no image could be read are left out."""
    batches = [batch for batch in batches if len(batch)]
    return np.concatenate(batches) if batches else np.empty(0)
