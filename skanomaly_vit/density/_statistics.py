"""Mergeable moments of rows (mean to fourth powers), of a size independent of their number.

Statistics of batches add up to statistics of all rows. They hold deviations from their own mean, so
no common reference point is needed. Each feature has its own unit, the power of two above its
largest deviation. Fourth powers of large values, small units or constant features thus neither
overflow nor vanish.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

FloatArray: TypeAlias = NDArray[np.float64]

#: Rows of one sum. Rounding depends on the boundaries of the sums: for the same bits, cut at
#: multiples of this number, and merge in the order of the rows.
SHARD = 1024

_EPS = np.finfo(np.float64).eps

# Of the unit of a constant feature: below that of any other.
_NO_EXPONENT = -2000


class Kind(enum.IntEnum):
    """Moments that statistics hold; each kind includes those before it."""

    VARIANCE = 1
    COVARIANCE = 2
    #: Includes the third and fourth powers that Ledoit-Wolf shrinkage needs.
    SHRINKAGE = 3


#: Kind -> square matrices that statistics of it hold.
_MATRICES: dict[Kind, tuple[str, ...]] = {
    Kind.VARIANCE: (),
    Kind.COVARIANCE: ("scatter",),
    Kind.SHRINKAGE: ("scatter", "cubes", "fourths"),
}

#: No float64 has a larger exponent, and no statistics one this far below 0.
_LARGEST_EXPONENT = 2048


@dataclass(frozen=True, eq=False)
class Statistics:
    """Count, mean and sums of products of deviations from it.

    Let u be the deviations of a row from the mean, u_j in the unit ``2 ** exponent[j]``.

    Attributes
    ----------
    n_samples : int
    mean : ndarray of shape (n_features,)
        In the units of the rows.
    exponent : ndarray of int of shape (n_features,)
    square : ndarray of shape (n_features,)
        Sum of u_j^2.
    scatter : ndarray of shape (n_features, n_features) or None
        Sum of u_j u_k; None with `Kind.VARIANCE`.
    cubes, fourths : ndarray of shape (n_features, n_features) or None
        Sums of u_j^2 u_k and of u_j^2 u_k^2; None but with `Kind.SHRINKAGE`.

    Notes
    -----
    Sums move to another mean by the formulas of [1]_, for products of up to four deviations.

    References
    ----------
    .. [1] P. Pebay, "Formulas for Robust, One-Pass Parallel Computation of Covariances and
       Arbitrary-Order Statistical Moments", Sandia report SAND2008-6212, 2008.
    """

    n_samples: int
    mean: FloatArray
    exponent: NDArray[np.int32]
    square: FloatArray
    scatter: FloatArray | None = None
    cubes: FloatArray | None = None
    fourths: FloatArray | None = None

    @classmethod
    def empty(cls, n_features: int, kind: Kind = Kind.SHRINKAGE) -> Statistics:
        """Statistics of no rows, the neutral element of `merge`."""
        return cls.of(np.empty((0, n_features)), kind)

    @classmethod
    def of(cls, rows: ArrayLike, kind: Kind = Kind.SHRINKAGE) -> Statistics:
        """Statistics of some rows, in one sum.

        Parameters
        ----------
        rows : array-like of shape (n_samples, n_features)
            Finite, up to 1e140; converted to float64.
        kind : Kind
        """
        values: FloatArray = np.asarray(rows, dtype=np.float64)
        mean = np.zeros(values.shape[1])
        if len(values):
            mean += values.mean(axis=0)
            # Twice, since a mean rounds: deviations of a constant feature become exactly 0.
            mean += (values - mean).mean(axis=0)
        deviations = values - mean
        exponent = _exponent(np.abs(deviations).max(axis=0, initial=0.0))
        units = np.ldexp(deviations, -exponent)  # (n_samples, n_features), in [-1, 1]
        squares = units**2
        square, scatter, cubes, fourths = squares.sum(axis=0), None, None, None
        if kind >= Kind.COVARIANCE:
            scatter = units.T @ units
        if kind >= Kind.SHRINKAGE:
            cubes, fourths = squares.T @ units, squares.T @ squares
        return cls(len(values), mean, exponent, square, scatter, cubes, fourths)

    @classmethod
    def of_shards(cls, shards: Iterable[ArrayLike], kind: Kind = Kind.SHRINKAGE) -> Statistics:
        """Statistics of rows that come in one shard or more."""
        return functools.reduce(cls.merge, (cls.of(shard, kind) for shard in shards))

    @property
    def kind(self) -> Kind:
        """Moments that they hold."""
        if self.scatter is None:
            return Kind.VARIANCE
        return Kind.COVARIANCE if self.fourths is None else Kind.SHRINKAGE

    def reduced(self, kind: Kind) -> Statistics:
        """The same statistics, without the moments of kinds beyond `kind`."""
        return dataclasses.replace(
            self,
            scatter=self.scatter if kind >= Kind.COVARIANCE else None,
            cubes=self.cubes if kind >= Kind.SHRINKAGE else None,
            fourths=self.fourths if kind >= Kind.SHRINKAGE else None,
        )

    def scaled(self, factor: FloatArray) -> Statistics:
        """Statistics of the rows times a positive factor for each feature, near 1."""
        square = factor**2

        def times(sums: FloatArray | None, left: FloatArray, right: FloatArray) -> Any:
            return None if sums is None else sums * np.outer(left, right)

        return dataclasses.replace(
            self,
            mean=self.mean * factor,
            square=self.square * square,
            scatter=times(self.scatter, factor, factor),
            cubes=times(self.cubes, square, factor),
            fourths=times(self.fourths, square, square),
        )

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the rows of both, of the lesser kind of the two.

        The order of merging changes results by rounding alone, some 1e-15 of their size.
        """
        n_samples = self.n_samples + other.n_samples
        if not self.n_samples or not other.n_samples:
            there = self if self.n_samples else other
            return there.reduced(min(self.kind, other.kind))
        between = other.mean - self.mean
        share = other.n_samples / n_samples
        exponent = np.maximum(self.exponent, other.exponent)
        exponent = np.maximum(exponent, _exponent(np.abs(between)))
        mine = self._about(-share * between, exponent)
        others = other._about((1 - share) * between, exponent)
        sums = [
            a + b if a is not None and b is not None else None
            for a, b in zip(mine, others, strict=True)
        ]
        mean = self.mean + share * between
        return Statistics(n_samples, mean, exponent, *sums)  # type: ignore[arg-type]

    __add__ = merge

    def location_and_scale(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of each feature, the scale of a constant one being 1."""
        deviation = np.sqrt(self.square / self.n_samples)
        with np.errstate(over="ignore"):
            scale = np.ldexp(deviation, self.exponent)
        # Below this, a deviation is rounding error. Dividing by it would make noise as large as a
        # real feature.
        rounding = self.n_samples * _EPS * np.abs(self.mean)
        # Rounding exceeds 1 only for constants beyond about 1e12. In units of 1, they seem far
        # from their own mean.
        return self.mean, np.where(scale <= rounding, np.maximum(rounding, 1.0), scale)

    def variance(self, scale: FloatArray | float = 1.0) -> FloatArray:
        """Maximum-likelihood variance of the features divided by `scale`."""
        return self.square / self.n_samples * self._per_scale(scale) ** 2

    def covariance(self, scale: FloatArray | float = 1.0) -> FloatArray:
        """Maximum-likelihood covariance of the features divided by `scale`."""
        if self.scatter is None:
            raise ValueError(f"statistics of the kind {self.kind.name} hold no covariance")
        weight = self._per_scale(scale)
        return self.scatter / self.n_samples * weight[:, np.newaxis] * weight

    def mean_fourth_power(self, scale: FloatArray, chosen: NDArray[np.bool_]) -> float:
        """Mean fourth power of the length of rows, in the `chosen` features.

        Features are centered and divided by `scale`.
        """
        if self.fourths is None:
            raise ValueError(f"statistics of the kind {self.kind.name} hold no fourth powers")
        weight = np.where(chosen, self._per_scale(scale) ** 2, 0.0)
        return float(weight @ (self.fourths / self.n_samples) @ weight)

    def projected(self, axes: FloatArray) -> Statistics:
        """Statistics, up to covariances, of ``(rows - mean) @ axes``.

        Parameters
        ----------
        axes : ndarray of shape (n_features, n_axes)
        """
        scatter = axes.T @ (self.covariance() * self.n_samples) @ axes
        square = scatter.diagonal()
        exponent = _exponent(np.sqrt(square.max(keepdims=True))).repeat(len(square))
        unit = np.ldexp(1.0, -2 * exponent)
        return Statistics(
            self.n_samples, np.zeros(len(square)), exponent, square * unit, scatter * unit
        )

    def write_state(self, part: StateRecord) -> None:
        """Write all sums into a record of their own."""
        part.write(n_samples=int(self.n_samples), kind=int(self.kind))
        part.write_tensor("exponent", self.exponent.astype(np.float64))
        for name in ("mean", "square", *_MATRICES[self.kind]):
            part.write_tensor(name, getattr(self, name))

    @classmethod
    def read_state(cls, part: StateRecord, n_features: int) -> Statistics:
        """The statistics that `write_state` wrote."""
        n_samples, kind = part.read_int("n_samples", 1), part.read_int("kind", 1)
        if kind not in list(Kind):
            raise ValueError(f"{part.name}.kind is {kind}")
        exponent = part.read_array("exponent", n_features)
        if (np.abs(exponent) > _LARGEST_EXPONENT).any() or (exponent % 1).any():
            raise ValueError(f"{part.name}.exponent holds values that no float64 has as exponent")
        statistics = cls(
            n_samples,
            part.read_array("mean", n_features),
            exponent.astype(np.int32),
            part.read_array("square", n_features),
            **{n: part.read_array(n, n_features, n_features) for n in _MATRICES[Kind(kind)]},
        )
        part.close()
        return statistics

    def _per_scale(self, scale: FloatArray | float) -> FloatArray:
        """Units of the features, divided by `scale`."""
        with np.errstate(over="ignore"):
            return 1.0 / np.ldexp(np.broadcast_to(scale, self.mean.shape), -self.exponent)

    def _about(
        self, shift: FloatArray, exponent: NDArray[np.int32]
    ) -> tuple[FloatArray, FloatArray | None, FloatArray | None, FloatArray | None]:
        """The sums for deviations that are larger by `shift`, in other units."""
        n, down = self.n_samples, np.ldexp(1.0, self.exponent - exponent)
        a = np.ldexp(shift, -exponent)
        down2, a2 = down**2, a**2
        square = self.square * down2
        scatter, cubes, fourths = self.scatter, self.cubes, self.fourths
        if scatter is not None:
            scatter = scatter * np.outer(down, down)
        if scatter is not None and cubes is not None and fourths is not None:
            cubes = cubes * np.outer(down2, down)
            fourths = fourths * np.outer(down2, down2)
            # Deviations add up to 0, so no term of their first power remains.
            mixed = 2 * cubes * a + np.outer(square, a2)
            fourths += mixed + mixed.T + 4 * np.outer(a, a) * scatter + n * np.outer(a2, a2)
            cubes += np.outer(square, a) + 2 * a[:, np.newaxis] * scatter + n * np.outer(a2, a)
        if scatter is not None:
            scatter += n * np.outer(a, a)
        return square + n * a2, scatter, cubes, fourths


def _exponent(largest: FloatArray) -> NDArray[np.int32]:
    """Exponent of the smallest power of two above each number."""
    exponent = np.frexp(largest)[1]
    return np.where(largest > 0, exponent, _NO_EXPONENT).astype(np.int32)
