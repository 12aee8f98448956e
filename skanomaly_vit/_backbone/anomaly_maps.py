"""Anomaly maps: the patches of an image, compared with normal patches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from skanomaly_vit._backbone.block_calls import BlockCall, in_full_precision, to_numpy
from skanomaly_vit._backbone.patches import BOTH, DISCREPANCY, FEATURES, NormalPatches, _log
from skanomaly_vit._images.missing import Maps


class MapCollector:
    """Measures the patches of images while a teacher passes over them.

    Parameters
    ----------
    normal : NormalPatches
    method : {"discrepancy", "features", "both"}
        A key of ``normal.map_scale``.
    """

    def __init__(self, normal: NormalPatches, method: str) -> None:
        self._normal = normal
        self._method = method
        self._errors: list[np.ndarray] = []  # of each image, a sum over blocks: [P]
        self._distances: list[np.ndarray] = []  # of each batch: [B, P]
        self._inside: list[np.ndarray] = []  # of each batch with regions: [B, P]
        self._passed: dict[int, int] = {}

    @property
    def needs_students(self) -> bool:
        """Whether maps show the errors of students."""
        return self._method != FEATURES

    @property
    def blocks(self) -> Collection[int]:
        """See `Observer`."""
        return set() if self._method == DISCREPANCY else {self._normal.layout.block}

    def observe(self, call: BlockCall, errors: torch.Tensor | None) -> None:
        """See `Observer`."""
        values = None
        if errors is not None:
            values = self._normal.layout.patches(errors).cpu()  # [B, N] -> [B, P]
        is_first = call.index == next(iter(self.blocks or self._normal.blocks))
        if is_first and call.inside is not None:
            self._inside.append(call.inside.cpu().numpy())  # [B, P]
        if call.index in self.blocks:
            self._distances.append(self._standardize(-1, self._distances_of(call)))
        # Last, once the device can no longer run out of memory.
        if values is not None:
            column = self._normal.blocks.index(call.index)
            self._add(column, self._standardize(column, values))

    def _add(self, column: int, values: np.ndarray) -> None:
        # Image by image, since one block may see a whole batch, and the next one its parts.
        start = self._passed.get(column, 0)
        self._passed[column] = stop = start + len(values)
        if column == 0:
            self._errors.extend(values)
            return
        for total, of_image in zip(self._errors[start:stop], values, strict=True):
            total += of_image

    def part(self, start: int, stop: int) -> MapCollector:
        """See `Observer`."""
        return MapCollector(self._normal, self._method)

    def collected(self) -> tuple[Any, ...]:
        """See `Observer`."""
        return self._errors, self._distances, self._inside

    def absorb(self, collected: tuple[Any, ...]) -> None:
        """See `Observer`."""
        errors, distances, inside = collected
        self._errors.extend(errors)
        self._inside.extend(inside)
        self._distances.extend(distances)

    def _distances_of(self, call: BlockCall) -> torch.Tensor:
        tokens = in_full_precision(self._normal.layout.tokens_of(call))  # [B, P, C]
        center, whitening = (
            value.to(tokens) for value in (self._normal.center, self._normal.whitening)
        )  # [C], [C, C]
        # One product per image, so that a map does not depend on the rest of its batch.
        each = whitening.expand(len(tokens), -1, -1)  # [C, C] -> [B, C, C]
        whitened = torch.bmm(tokens - center, each)  # [B, P, C]
        return whitened.square().mean(dim=2)  # [B, P, C] -> [B, P]

    def _standardize(self, column: int, values: torch.Tensor) -> np.ndarray:
        deviation = _log(to_numpy(values)) - self._normal.location[column]
        return deviation / self._normal.scale[column]

    def maps(self) -> np.ndarray:
        """Maps of all images: (n_images, rows, columns) float32, in standard deviations."""
        scale, layout = self._normal.map_scale, self._normal.layout
        if not (self._errors or self._distances):
            return np.empty((0, layout.rows, layout.columns), np.float32)
        parts = []
        if self.needs_students:
            mean_errors = np.stack(self._errors) / len(self._normal.blocks)  # [n, P]
            parts.append(mean_errors / scale[DISCREPANCY])
        if self._method != DISCREPANCY:
            distances = np.concatenate(self._distances)  # n / B x [B, P] -> [n, P]
            parts.append(distances / scale[FEATURES])
        combined = parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / scale[BOTH]
        maps = combined.reshape(-1, layout.rows, layout.columns)  # [n, P] -> [n, rows, columns]
        if self._inside:
            insides = np.concatenate(self._inside).reshape(maps.shape)  # [n, rows, columns]
            maps = continued(torch.from_numpy(maps), torch.from_numpy(insides)).numpy()
        return maps.astype(np.float32)


def continued(maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Maps whose patches outside a region have the value of the nearest one inside.

    Interpolation at the border of the region then mixes in nothing from outside.

    Parameters
    ----------
    maps : torch.Tensor of shape (batch, rows, columns)
    inside : torch.Tensor of shape (batch, rows, columns), bool
    """
    n_rows, n_columns = maps.shape[1:]
    far = torch.zeros_like(maps).masked_fill(~inside, torch.inf)  # [B, R, C]
    # Squared distance to the nearest patch inside of the same column, and its row; then among
    # columns: exact, and with less memory than the distances of all pairs.
    down, row = (_squares(n_rows, maps)[..., None] + far[:, None]).min(dim=2)  # [B, R, C]
    along = down[:, :, None] + _squares(n_columns, maps)  # [B, R, C, C]
    column = along.argmin(dim=3)  # [B, R, C]
    place = row.gather(2, column) * n_columns + column  # [B, R, C]
    return maps.flatten(1).gather(1, place.flatten(1)).unflatten(1, (n_rows, n_columns))


def _squares(n: int, like: torch.Tensor) -> torch.Tensor:
    """Squared distances of n places in a line: (n, n) float32."""
    places = torch.arange(n, dtype=torch.float32, device=like.device)
    return (places[:, None] - places).square()


def enlarge(maps: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Maps:
    """Interpolate maps (n, rows, columns) to the sizes of their images: (n, height, width).

    Maps of different sizes come as a list.
    """
    if len(set(sizes)) == 1:
        return _resize(maps, sizes[0])
    return [_resize(maps[i : i + 1], size)[0] for i, size in enumerate(sizes)]


def _resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(maps)[:, None]  # [n, 1, rows, columns]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear")
    # [n, 1, height, width] -> [n, height, width]
    return resized[:, 0].numpy()
