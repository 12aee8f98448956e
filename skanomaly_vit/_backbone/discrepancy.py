"""Both feature spaces of an image, from one pass of the teacher: the heart of the method.

Let h_0, ..., h_L be the tokens of an image before the teacher's first block and after each block
B_1, ..., B_L: h_j = B_j(h_{j-1}). A student S_j learned on normal images to imitate B_j.

- The pre-trained space is a set of views: tokens, pooled. The paper's only view is the teacher's
  own pooled output.
- The discrepancy space has one number per block: the mean of (S_j(h_{j-1}) - h_j)^2 over channels
  and over the worst share of the patches. It is large where the image differs from normal images.
  The paper's is the mean over all tokens (Transformaly, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall, in_full_precision, to_numpy
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._backbone.patches import Observer
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._backbone.views import View, names_of

PRETRAINED, DISCREPANCY = "pretrained", "discrepancy"

#: A view of the pre-trained space, or the discrepancy space -> features (n_images, n_features) of
#: some images.
Embedded: TypeAlias = dict[str, np.ndarray]


def token_errors(student: nn.Module, call: BlockCall) -> torch.Tensor:
    """Squared error of a student on each token, the mean over channels: (batch, tokens)."""
    imitated = call.replay(student)  # S_j(h_{j-1}): [B, N, C]
    difference = in_full_precision(imitated) - call.output  # S_j(h_{j-1}) - h_j: [B, N, C]
    return difference.square_().mean(dim=2)  # [B, N, C] -> [B, N]


def pool_errors(of_tokens: torch.Tensor, call: BlockCall, teacher: Teacher) -> torch.Tensor:
    """Error of each image, as the readout of the teacher says: (batch, tokens) -> (batch,)."""
    return teacher.readout.pool_errors(of_tokens, teacher.n_prefix(of_tokens), call.inside)


@torch.inference_mode()
def embed(
    passes: TeacherPasses,
    indices: np.ndarray,
    students: Mapping[int, nn.Module],
    observer: Observer | None = None,
    track: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> Iterator[Embedded]:
    """Features of images in both spaces, batch by batch.

    Parameters
    ----------
    passes : TeacherPasses
    indices : ndarray of int
        The images, in this order.
    students : mapping of int to nn.Module
        The student of each block to score. Without students there is no discrepancy space.
    observer : Observer or None
        Looks at the patches on the way.
    track : callable
        Wraps the iterator of batches, to follow progress.

    Yields
    ------
    embedded : dict of str to ndarray
        Each view of the teacher: z_p of shape (batch, dim), in the teacher's floating type; float32
        if that is bfloat16. ``discrepancy``: z_f of shape (batch, n_students), the blocks in
        ascending order.
    """
    # Block -> errors of the parts of a batch: one part, unless memory runs out.
    errors: dict[int, list[np.ndarray]] = {index: [] for index in sorted(students)}

    def visit(call: BlockCall) -> None:
        of_tokens = of_images = None
        if call.index in students:
            of_tokens = token_errors(students[call.index], call)  # [B, N]
            of_images = to_numpy(pool_errors(of_tokens, call, passes.teacher))  # [B, N] -> [B]
        if observer is not None:
            observer.observe(call, of_tokens)
        # Last, once the device can no longer run out of memory.
        if of_images is not None:
            errors[call.index].append(of_images)

    blocks = {*students, *(observer.blocks if observer is not None else ())}
    for features in passes.run(indices, blocks, visit, track=track):
        embedded = passes.teacher.split(to_numpy(features))  # n_views x [B, C]
        if students:
            columns = [np.concatenate(parts) for parts in errors.values()]
            embedded[DISCREPANCY] = np.stack(columns, axis=1)  # n_students x [B] -> [B, n_students]
        for parts in errors.values():
            parts.clear()
        yield embedded


def n_rows(embedded: Embedded) -> int:
    """Number of images."""
    return len(next(iter(embedded.values())))


def concatenate(batches: Iterable[Embedded], views: Sequence[View], n_students: int) -> Embedded:
    """Features of all batches as one; it has no rows if no image was readable."""
    found = [batch for batch in batches if n_rows(batch)]
    if found:
        return {space: np.concatenate([batch[space] for batch in found]) for space in found[0]}
    nothing = {name: np.empty((0, 0)) for name in names_of(views)}
    return nothing | {DISCREPANCY: np.empty((0, n_students))} if n_students else nothing
