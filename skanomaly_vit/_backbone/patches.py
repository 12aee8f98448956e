"""Patch statistics of normal images, the scale of anomaly maps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf

from skanomaly_vit._backbone.block_calls import BlockCall, to_numpy
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._caching.memory import Tensors
from skanomaly_vit._utils.hashing import combine

#: Normal patches to sample, at most: enough for a covariance of their tokens.
N_PATCHES = 4096

#: Smaller errors count as this one, before the logarithm.
SMALLEST_ERROR = float(np.finfo(np.float32).tiny)

#: Kinds of maps: errors of students, distances of tokens, or both.
METHODS = DISCREPANCY, FEATURES, BOTH = "discrepancy", "features", "both"


class Observer(Protocol):
    """Looks at patches while a teacher passes over images."""

    @property
    def blocks(self) -> Collection[int]:
        """Blocks that it has to see, beside blocks with students."""

    def observe(self, call: BlockCall, errors: torch.Tensor | None) -> None:
        """Look at a block at work.

        Parameters
        ----------
        call : BlockCall
        errors : torch.Tensor of shape (batch, tokens) or None
            Mean squared error over channels of the block's student, if it has one.
        """

    def part(self, start: int, stop: int) -> Observer:
        """An observer of the images from `start` to `stop` of the pass alone."""

    def collected(self) -> tuple[Any, ...]:
        """All observations so far."""

    def absorb(self, collected: tuple[Any, ...]) -> None:
        """Append the observations of the part that saw the next images."""


@dataclass(frozen=True)
class PatchLayout:
    """Position of the patches among the tokens.

    Attributes
    ----------
    rows, columns : int
    block : int
        The block whose tokens represent a patch: the middle one. Its tokens say more of the place,
        and less of the whole image, than those of the last.
    """

    rows: int
    columns: int
    block: int

    @property
    def n_patches(self) -> int:
        """Number of patches of an image."""
        return self.rows * self.columns

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Drop the tokens before the patches: (batch, tokens, ...) -> (batch, patches, ...)."""
        n_prefix = tokens.shape[1] - self.n_patches
        if n_prefix < 0:
            raise ValueError(
                f"the backbone's blocks have {tokens.shape[1]} tokens where {self.rows} x "
                f"{self.columns} patches are expected; anomaly maps need one token per patch"
            )
        return tokens[:, n_prefix:]  # [B, N, ...] -> [B, P, ...]

    def tokens_of(self, call: BlockCall) -> torch.Tensor:
        """Tokens of the patches, each on the same scale: (batch, patches, dim)."""
        patches = self.patches(call.output)  # [B, N, C] -> [B, P, C]
        return torch.nn.functional.layer_norm(patches, patches.shape[-1:])  # [B, P, C]


def layout_of(teacher: Teacher) -> PatchLayout | None:
    """Layout of a backbone's patches; None if the backbone does not tell their size."""
    grid = teacher.grid
    return None if grid is None else PatchLayout(*grid, len(teacher.blocks) // 2)


class PatchSample:
    """Collects a random sample of normal patches while a teacher passes over their images.

    Parameters
    ----------
    layout : PatchLayout
    n_images : int
        Images of the pass.
    held_out : ndarray of int
        Positions in the pass of images that students did not learn from; may be empty.
    share_inside : float
        About which share of the patches counts. The sample leaves the others out.
    """

    def __init__(
        self,
        layout: PatchLayout,
        n_images: int,
        held_out: np.ndarray,
        share_inside: float = 1.0,
    ) -> None:
        self.layout = layout
        n_patches = n_images * layout.n_patches
        n_drawn = min(n_patches, round(N_PATCHES / share_inside))
        # Any fixed draw will do; it ignores the user's `random_state`.
        draw = np.random.default_rng(0).choice(n_patches, n_drawn, replace=False, shuffle=False)
        self._chosen = np.sort(draw)
        is_held_out = np.isin(self._chosen // layout.n_patches, held_out)
        self._is_held_out = is_held_out
        self.key = combine("patches", n_drawn, layout, n_images, held_out.tobytes())
        self._errors: dict[int, list[np.ndarray]] = {}
        self._tokens: list[np.ndarray] = []
        self._inside: list[np.ndarray] = []
        self._passed: dict[int, int] = {}

    @property
    def blocks(self) -> Collection[int]:
        """See `Observer`."""
        return {self.layout.block}

    def observe(self, call: BlockCall, errors: torch.Tensor | None) -> None:
        """See `Observer`."""
        start = self._passed.get(call.index, 0)
        stop = start + len(call.tokens) * self.layout.n_patches
        first, last = np.searchsorted(self._chosen, [start, stop])
        if first == last:  # true of most batches, if there are very many
            self._passed[call.index] = stop
            return
        rows = torch.from_numpy(self._chosen[first:last] - start).to(call.tokens.device)  # [n]
        inside = torch.ones_like(rows, dtype=torch.bool)  # [n]
        if call.inside is not None:
            inside = call.inside.flatten()[rows]  # [B, P] -> [n]
        rows = rows[inside]
        values = None
        if errors is not None:
            values = self.layout.patches(errors).flatten()[rows].cpu()  # [B, N] -> [n]
        if call.index == self.layout.block:
            tokens = self.layout.tokens_of(call).flatten(0, 1)[rows]  # [B, P, C] -> [n, C]
            self._tokens.append(to_numpy(tokens))
            self._inside.append(inside.cpu().numpy())
        # Last, once the device can no longer run out of memory.
        if values is not None:
            self._errors.setdefault(call.index, []).append(to_numpy(values))
        self._passed[call.index] = stop

    def part(self, start: int, stop: int) -> PatchSample:
        """See `Observer`."""
        first, last = start * self.layout.n_patches, stop * self.layout.n_patches
        low, high = np.searchsorted(self._chosen, [first, last])
        part = copy.copy(self)
        part._chosen = self._chosen[low:high] - first
        part._errors, part._tokens, part._inside, part._passed = {}, [], [], {}
        return part

    def collected(self) -> tuple[Any, ...]:
        """See `Observer`."""
        return self._errors, self._tokens, self._inside

    def absorb(self, collected: tuple[Any, ...]) -> None:
        """See `Observer`."""
        errors, tokens, inside = collected
        self._inside.extend(inside)
        for index, values in errors.items():
            self._errors.setdefault(index, []).extend(values)
        self._tokens.extend(tokens)

    def of_block(self, index: int) -> Tensors:
        """Logarithmic errors of a block's student on unseen patches."""
        return {"patches": torch.from_numpy(_log(np.concatenate(self._errors[index])))}

    def of_tokens(self) -> Tensors:
        """A Gaussian of the tokens of learned patches, and logarithmic distances of unseen ones."""
        tokens = np.concatenate(self._tokens).astype(np.float64)  # [n, C]
        inside = np.concatenate(self._inside)  # [n_drawn]
        is_held_out = self._is_held_out[inside]  # [n]
        learned = ~is_held_out if not is_held_out.all() else is_held_out
        center, whitening = _whiten(tokens[learned])  # [C], [C, C]
        distances = np.square((tokens - center) @ whitening).mean(axis=1)  # [n, C] -> [n]
        return {
            "center": torch.from_numpy(center).float(),
            "whitening": torch.from_numpy(whitening).float(),
            "patches": torch.from_numpy(_log(distances)),
            "unseen": torch.from_numpy(is_held_out if is_held_out.any() else ~is_held_out),
        }

    def summarize(self, known: Mapping[int, Tensors], of_tokens: Tensors) -> NormalPatches:
        """Combine the results of `of_block` for each block, and that of `of_tokens`."""
        errors = [known[index]["patches"].numpy() for index in sorted(known)]
        patches = np.stack([*errors, of_tokens["patches"].numpy()], axis=1)  # [n, n_blocks + 1]
        columns = patches[of_tokens["unseen"].numpy()]  # [n_unseen, n_blocks + 1]
        location, scale = columns.mean(axis=0), _scale(columns)  # [n_blocks + 1] each
        parts = (columns - location) / scale  # [n_unseen, n_blocks + 1]
        map_scale = {FEATURES: 1.0}
        if errors:
            mean_error = parts[:, :-1].mean(axis=1)  # [n_unseen]
            map_scale[DISCREPANCY] = float(_scale(mean_error))
            both = mean_error / map_scale[DISCREPANCY] + parts[:, -1]  # [n_unseen]
            map_scale[BOTH] = float(_scale(both))
        return NormalPatches(
            layout=self.layout,
            blocks=sorted(known),
            center=of_tokens["center"],
            whitening=of_tokens["whitening"],
            location=location,
            scale=scale,
            map_scale=map_scale,
        )


def _log(values: np.ndarray) -> np.ndarray:
    """Logarithm of errors, which are positive and skewed; 0 counts as the smallest one."""
    return np.log(np.maximum(values.astype(np.float64), SMALLEST_ERROR))


def _scale(values: np.ndarray) -> np.ndarray:
    scale = np.std(values, axis=0)
    return np.where(scale > 0, scale, 1.0)


def _whiten(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a matrix that gives tokens a unit covariance."""
    variances, axes = np.linalg.eigh(ledoit_wolf(tokens)[0])  # [C], [C, C]
    # Tokens of artificial images can lie in a subspace.
    floor = max(1e-6 * float(variances.max()), np.finfo(np.float64).tiny)
    return tokens.mean(axis=0), axes / np.sqrt(np.maximum(variances, floor))


@dataclass(frozen=True)
class NormalPatches:
    """Statistics of normal patches, against which maps compare other patches.

    Attributes
    ----------
    layout : PatchLayout
    blocks : list of int
        Blocks with students.
    center, whitening : torch.Tensor of shape (dim,), (dim, dim)
        Gaussian of the tokens.
    location, scale : ndarray of shape (n_blocks + 1,)
        Mean and standard deviation of the logarithmic errors of each block, and of the logarithmic
        distance of the tokens.
    map_scale : dict of str to float
        Method -> standard deviation of its map on normal patches, before scaling.
    """

    layout: PatchLayout
    blocks: list[int]
    center: torch.Tensor
    whitening: torch.Tensor
    location: np.ndarray
    scale: np.ndarray
    map_scale: dict[str, float]

    def scaled(self, factor: np.ndarray) -> NormalPatches:
        """Statistics where students err by a factor more, (n_blocks,)."""
        location = self.location + np.append(np.log(factor), 0.0)
        return dataclasses.replace(self, location=location)
