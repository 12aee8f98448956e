"""Gram matrices of ridge students, kept so that more images can be added to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

#: Fields that hold an upper triangle each, and the type in which it is kept.
_TRIANGLES = "tokens", "means"
_DTYPE = np.float32


@dataclass(frozen=True, eq=False)
class RidgeGram:
    """Inputs of the images that a ridge student has learned from, as sums.

    The products of inputs and residuals are not kept: the student is the solution of a system of
    these, so it gives them back (`RidgeStatistics.of_gram`).

    Attributes
    ----------
    tokens, means : ndarray of shape (dim * (dim + 1) / 2,), float32
        Upper triangles of the sums of outer products of tokens, and of mean tokens.
    totals : ndarray of shape (dim + 2,), float64
        Sum of the tokens, their number, and the sum of the squared residuals.
    """

    tokens: NDArray[np.float32]
    means: NDArray[np.float32]
    totals: NDArray[np.float64]

    @classmethod
    def pack(cls, gram: np.ndarray, square: float) -> RidgeGram:
        """Pack the Gram matrix of `RidgeStatistics`."""
        dim = len(gram) // 2
        triangle = np.triu_indices(dim)
        tokens, means = gram[:dim, :dim], gram[dim:-1, dim:-1]
        return cls(
            tokens[triangle].astype(_DTYPE),
            means[triangle].astype(_DTYPE),
            np.append(gram[:dim, -1], [gram[-1, -1], square]),
        )

    def unpack(self) -> tuple[np.ndarray, float]:
        """The inverse of `pack`, in float64."""
        dim = self.dim
        gram = np.empty((2 * dim + 1, 2 * dim + 1))
        means = _square(self.means, dim)
        gram[:dim, :dim] = _square(self.tokens, dim)
        # The products of a mean token with the tokens of its image sum to those with itself.
        gram[:dim, dim:-1] = gram[dim:-1, :dim] = gram[dim:-1, dim:-1] = means
        gram[:-1, -1] = gram[-1, :-1] = np.tile(self.totals[:dim], 2)
        gram[-1, -1] = self.totals[dim]
        return gram, float(self.totals[-1])

    @property
    def dim(self) -> int:
        """Number of channels."""
        return len(self.totals) - 2

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, by name."""
        return {"tokens": self.tokens, "means": self.means, "totals": self.totals}

    def write_state(self, part: StateRecord) -> None:
        """Write the sums into a record of their own."""
        for name, values in self.arrays.items():
            part.write_tensor(name, values)

    @classmethod
    def read_state(cls, part: StateRecord, dim: int) -> RidgeGram:
        """The inverse of `write_state`."""
        size = dim * (dim + 1) // 2
        arrays: dict[str, Any] = {n: part.read_array(n, size, dtype=_DTYPE) for n in _TRIANGLES}
        gram = cls(totals=part.read_array("totals", dim + 2), **arrays)
        if not (gram.totals[dim:] >= 0).all():
            raise ValueError(f"{part.name}.totals holds a count or a sum of squares below 0")
        part.close()
        return gram


def _square(triangle: np.ndarray, dim: int) -> np.ndarray:
    """The symmetric matrix of an upper triangle, in float64."""
    matrix = np.empty((dim, dim))
    above = np.triu_indices(dim)
    matrix[above] = triangle
    matrix.T[above] = triangle
    return matrix
