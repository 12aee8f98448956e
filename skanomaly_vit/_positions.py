"""Position embeddings, which processors of another kind interpolate to other bits."""

from __future__ import annotations

import torch

from skanomaly_vit._teacher import Teacher

# Of interpolation in float32; other weights differ by far more.
_ROUNDING = 1e-5


def positions_of(model: torch.nn.Module) -> torch.Tensor | None:
    """Position embeddings on the CPU; None for a network that has none of its own."""
    found = getattr(model, "pos_embed", None)
    return found.detach().cpu().clone() if torch.is_tensor(found) else None


def same_teacher(
    teacher: Teacher, fingerprint: str, positions: torch.Tensor | None
) -> Teacher | None:
    """The teacher if it has a fingerprint, or has it with `positions`; None if it is another."""
    if teacher.fingerprint == fingerprint:
        return teacher
    teacher = _with_positions(teacher, positions)
    return teacher if teacher.fingerprint == fingerprint else None


def _with_positions(teacher: Teacher, positions: torch.Tensor | None) -> Teacher:
    """The teacher with these position embeddings, if its own are the same but for rounding.

    They are interpolated to the size of the images, which processors of another kind round
    otherwise.
    """
    own = positions_of(teacher.model)
    if own is None or positions is None or own.shape != positions.shape:
        return teacher
    if (own - positions).abs().max() > _ROUNDING * own.abs().max():
        return teacher
    model = teacher.copy_model()  # others may share it
    with torch.no_grad():
        model.pos_embed.copy_(positions)  # type: ignore[operator]
    # A worker that loads the origin is sent the positions, and repairs its own alike.
    return Teacher(model, teacher.preprocessing, teacher.device, teacher.origin)
