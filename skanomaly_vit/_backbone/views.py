"""Readout of a pass: views, vectors that describe an image, and the pooling of errors.

A view pools the tokens after a block. A defect that the class token averages away can show in the
largest patch; the middle of the network holds what its end forgets. A readout pools the errors of
students, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Poolings of tokens: as the backbone pools them, or its patches' mean or largest value.
POOLED, MEAN_PATCH, MAX_PATCH = "pooled", "mean_patch", "max_patch"
POOLINGS = (POOLED, MEAN_PATCH, MAX_PATCH)

_FORM = re.compile(rf"({'|'.join(POOLINGS)})(?::(-[1-9][0-9]*))?")


@dataclass(frozen=True)
class View:
    """A vector of an image: tokens after one block, pooled.

    Attributes
    ----------
    pooling : {"pooled", "mean_patch", "max_patch"}
    block : int
        Counted from the end of the backbone: -1 is the last block.
    """

    pooling: str
    block: int = -1

    @classmethod
    def parse(cls, name: str) -> View:
        """The view of a name such as ``"pooled"`` or ``"max_patch:-2"``.

        Raises
        ------
        ValueError
            If there is no such view.
        """
        found = _FORM.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise ValueError(
                f"{name!r} is no view. A view is a pooling, {', '.join(POOLINGS)}, of the tokens "
                "after the last block, or of a block counted from the end, as in 'max_patch:-2'."
            )
        return cls(found[1], int(found[2] or -1))

    @property
    def name(self) -> str:
        """The shortest name that `parse` takes."""
        return self.pooling if self.block == -1 else f"{self.pooling}:{self.block}"

    @property
    def is_penultimate(self) -> bool:
        """Whether it is the backbone's own output, which needs no tokens."""
        return self == PENULTIMATE

    def index(self, n_blocks: int) -> int:
        """Index of its block in a backbone of `n_blocks`; a ValueError if that has fewer."""
        if n_blocks + self.block < 0:
            raise ValueError(
                f"view {self.name!r} is of block {-self.block} from the end, but the backbone has "
                f"{n_blocks} blocks. Pass views of the last {n_blocks} blocks."
            )
        return n_blocks + self.block

    def pool(
        self, tokens: torch.Tensor, n_prefix: int, inside: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vector of each image, of the normalised tokens: (batch, tokens, dim) -> (batch, dim).

        Parameters
        ----------
        tokens : torch.Tensor of shape (batch, tokens, dim)
            Tokens after the block.
        n_prefix : int
            Number of tokens before the patches.
        inside : torch.Tensor of shape (batch, patches), bool, or None
            The patches that count; None is all.
        """
        # [B, N, C], as the final norm would without weights: densities undo those.
        normed = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
        patches = normed[:, n_prefix:]  # [B, P, C]
        if self.pooling == MAX_PATCH:
            if inside is not None:
                patches = patches.masked_fill(~inside[..., None], -torch.inf)
            return patches.amax(dim=1)  # [B, P, C] -> [B, C]
        if self.pooling == POOLED and n_prefix:
            return normed[:, 0]  # the class token: [B, N, C] -> [B, C]
        if inside is not None:
            shares = inside.to(patches.dtype) / inside.sum(dim=1, keepdim=True)  # [B, P]
            return (shares[..., None] * patches).sum(dim=1)  # [B, P, C] -> [B, C]
        return patches.mean(dim=1)  # [B, P, C] -> [B, C]


#: The backbone's own output.
PENULTIMATE = View(POOLED)


def parse_views(names: str | Sequence[str]) -> tuple[View, ...]:
    """The views of some names, or of one.

    Raises
    ------
    ValueError
        If there are none, one is no view, or one is there twice.
    """
    views = tuple(map(View.parse, [names] if isinstance(names, str) else names))
    if not views:
        raise ValueError("views is empty; pass at least one, such as ('pooled',)")
    for view in views:
        if views.count(view) > 1:
            raise ValueError(f"view {view.name!r} is there twice; pass each once")
    return views


def names_of(views: Sequence[View]) -> tuple[str, ...]:
    """Names of views."""
    return tuple(view.name for view in views)


def n_prefix(tokens: torch.Tensor, grid: tuple[int, int] | None) -> int:
    """Number of tokens before those of a grid of patches; 0 if the grid is not known."""
    n_patches = tokens.shape[1] if grid is None else grid[0] * grid[1]
    return max(0, tokens.shape[1] - n_patches)


def share_of(pooling: str | float) -> float | None:
    """Share of the worst patches, 0 for the worst one alone; None for ``"mean"``, all tokens."""
    if isinstance(pooling, str):
        return {"mean": None, "max": 0.0}[pooling]
    return float(pooling)


@dataclass(frozen=True)
class Readout:
    """Numbers of an image that a pass of a teacher with students gives.

    Attributes
    ----------
    views : tuple of View
    pooling : float or None
        Share of the patches, the worst of which make up the error of a student on an image; 0 is
        the worst one. None is the mean over all tokens, the class token included.
    """

    views: tuple[View, ...] = (PENULTIMATE,)
    pooling: float | None = None

    def pool_errors(
        self, errors: torch.Tensor, n_prefix: int, inside: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Error of each image: (batch, tokens) -> (batch,); of the patches `inside` alone."""
        if inside is not None:
            return self._pool_inside(errors, n_prefix, inside)
        if self.pooling is None:
            return errors.mean(dim=1)  # [B, N] -> [B]
        patches = errors[:, n_prefix:]  # [B, P]
        n_worst = max(1, round(self.pooling * patches.shape[1]))
        return patches.topk(n_worst, dim=1).values.mean(dim=1)  # [B, P] -> [B]

    def _pool_inside(
        self, errors: torch.Tensor, n_prefix: int, inside: torch.Tensor
    ) -> torch.Tensor:
        n_inside = inside.sum(dim=1)  # [B]
        patches = errors[:, n_prefix:]  # [B, P]
        if self.pooling is None:
            others = errors[:, :n_prefix].sum(dim=1)  # [B]
            total = patches.masked_fill(~inside, 0).sum(dim=1)  # [B]
            return (total + others) / (n_inside + n_prefix)  # [B]
        ordered = patches.masked_fill(~inside, -torch.inf).sort(dim=1, descending=True).values
        n_worst = (self.pooling * n_inside).round().long().clamp(min=1)[:, None]  # [B, 1]
        places = torch.arange(ordered.shape[1], device=ordered.device)  # [P]
        worst = ordered.masked_fill(places >= n_worst, 0)  # [B, P]
        return worst.sum(dim=1) / n_worst[:, 0]  # [B, P] -> [B]


#: The readout of the paper.
PLAIN = Readout()
