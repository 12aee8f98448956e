"""Statistics of normal patches in a model file."""

from __future__ import annotations

from dataclasses import asdict

import torch

from skanomaly_vit._backbone.patches import FEATURES, METHODS, NormalPatches, PatchLayout
from skanomaly_vit.persistence._record import StateRecord


def write_patches(record: StateRecord, normal: NormalPatches | None) -> None:
    """Write the statistics as a part of `record`; None writes nothing."""
    if normal is None:
        return
    part = record.write_part("normal_patches")
    part.write(
        **asdict(normal.layout),
        dim=len(normal.center),
        map_scale={method: float(scale) for method, scale in normal.map_scale.items()},
    )
    for name in ("center", "whitening", "location", "scale"):
        part.write_tensor(name, getattr(normal, name))


def read_patches(record: StateRecord, blocks: list[int]) -> NormalPatches | None:
    """The inverse of `write_patches`; `blocks` are those with a student."""
    if "normal_patches" not in record.values:
        return None
    part = record.read_part("normal_patches")
    rows, columns = part.read_int("rows", 1), part.read_int("columns", 1)
    layout = PatchLayout(rows, columns, part.read_int("block"))
    dim, scales = part.read_int("dim", 1), part.read_part("map_scale")
    if set(scales.values) != (set(METHODS) if blocks else {FEATURES}):
        raise ValueError(f"{scales.name} names {', '.join(scales.values) or 'nothing'}")
    normal = NormalPatches(
        layout=layout,
        blocks=list(blocks),
        center=part.read_tensor("center", dim, dtype=torch.float32),
        whitening=part.read_tensor("whitening", dim, dim, dtype=torch.float32),
        location=part.read_array("location", len(blocks) + 1),
        scale=part.read_array("scale", len(blocks) + 1, positive=True),
        map_scale={name: scales.read_number(name, positive=True) for name in list(scales.values)},
    )
    part.close()
    return normal
