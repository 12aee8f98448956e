"""One pass of the teacher: both features of every image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from skanomaly_vit._teacher import BlockCall, Teacher


@torch.inference_mode()
def extract(
    teacher: Teacher, students: Sequence[nn.Module], batches: Iterable[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Pre-trained and discrepancy features of all images, batch by batch.

    Parameters
    ----------
    teacher : Teacher
    students : sequence of nn.Module
        The students of the last ``len(students)`` blocks, earliest first; may be empty.
    batches : iterable of torch.Tensor of shape (batch, 3, height, width)
        Normalised images.

    Returns
    -------
    features : ndarray of shape (n_images, dim)
        z_p, in the teacher's floating type.
    discrepancies : ndarray of shape (n_images, len(students))
        z_f: mean over tokens and channels of (S_j(h_{j-1}) - h_j)^2 (Transformaly, section 3).
    """
    first = len(teacher.blocks) - len(students)
    errors: list[torch.Tensor] = []

    def visit(call: BlockCall) -> None:
        difference = call.replay(students[call.index - first]) - call.output
        errors.append(difference.square().mean(dim=(1, 2)))  # (batch, tokens, dim) -> (batch,)

    features, discrepancies = [], []
    for images in batches:
        errors.clear()
        features.append(teacher(images, n_blocks=len(students), visit=visit).cpu().numpy())
        columns = torch.stack(errors, dim=1).cpu().numpy() if errors else None
        discrepancies.append(np.empty((len(images), 0)) if columns is None else columns)
    return np.concatenate(features), np.concatenate(discrepancies)
