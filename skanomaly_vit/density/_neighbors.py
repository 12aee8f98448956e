"""Neighbours of a sample among training samples: the base of the densities that search them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from scipy.special import gammaln
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state

from skanomaly_vit._utils.compat import Interval, StrOptions, fitted_samples
from skanomaly_vit.density._base import UpdatableDensity, check_at_most_n_samples, standardize
from skanomaly_vit.density._coreset import greedy_k_center
from skanomaly_vit.density._row_sample import RowSample
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

# In units of sqrt(n_features), the root mean square distance of a sample from the mean. Far above
# the distance that rounding gives two equal points.
SMALLEST_RADIUS = 1e-6

#: Samples drawn for each one that a greedy coreset takes.
_POOL = 10

NEIGHBOR_CONSTRAINTS: dict[str, list[Any]] = {
    "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    "max_samples": [Interval(Integral, 1, None, closed="left"), None],
    "subsampling": [StrOptions({"random", "greedy"})],
    "n_jobs": [None, Integral],
    "random_state": ["random_state"],
}


class LinearMap(Protocol):
    """A linear map of standardized features to the space of the search."""

    @property
    def log_det(self) -> float:
        """Logarithm of its determinant."""

    def apply(self, Z: FloatArray) -> FloatArray:
        """Map rows of standardized features."""

    def undo(self, points: FloatArray) -> FloatArray:
        """Map them back."""


class Identity:
    """The map that changes nothing."""

    log_det = 0.0

    def apply(self, Z: FloatArray) -> FloatArray:
        """Map rows of standardized features."""
        return Z

    def undo(self, points: FloatArray) -> FloatArray:
        """Map them back."""
        return points


class NeighborDensity(UpdatableDensity):
    """Base of the densities that search neighbours among training samples, or a coreset of them.

    A subclass may search in another space than that of standardized features: `_kind` and
    `_fit_map` choose it. `_radius` makes one distance of those to the neighbours.
    """

    n_neighbors: int
    max_samples: int | None
    subsampling: str
    n_jobs: int | None
    random_state: int | np.random.RandomState | None
    neighbors_: NearestNeighbors
    _map: LinearMap

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = NEIGHBOR_CONSTRAINTS

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        """Kind of statistics that `_fit_map` needs."""
        return Kind.VARIANCE

    def _fit_map(self, statistics: Statistics, scale: FloatArray) -> LinearMap:
        """Map to the space of the search."""
        return Identity()

    @abstractmethod
    def _radius(self, distances: FloatArray) -> FloatArray:
        """One distance a row, from those to its neighbours, ascending."""

    def _fit_rows(self, rows: Rows) -> Self:
        statistics = Statistics.of_shards(rows, self._kind(*rows.shape))
        limit = self._limit()
        if limit is None:
            return self._fit_samples(statistics, rows.gather())
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        pool = RowSample.of_shards(rows, limit, _salt(seed))
        return self._fit_samples(statistics, pool.rows, pool, seed)

    def _update_rows(self, rows: Rows) -> Self:
        known = self._require_updatable()
        statistics = known + Statistics.of_shards(rows, known.kind)
        if self._pool is None:
            so_far = self._samples_so_far()
            return self._fit_samples(statistics, np.concatenate([so_far, rows.gather()]))
        new = RowSample.of_shards(rows, self._pool.limit, _salt(self._seed))
        pool = self._pool.merge(new)
        return self._fit_samples(statistics, pool.rows, pool, self._seed)

    def _rescale(self, factor: FloatArray) -> Self:
        statistics = self._require_updatable().scaled(factor)
        if self._pool is None:
            return self._fit_samples(statistics, self._samples_so_far() * factor)
        pool = dataclasses.replace(self._pool, rows=self._pool.rows * factor)
        return self._fit_samples(statistics, pool.rows, pool, self._seed)

    def _samples_so_far(self) -> FloatArray:
        """The samples of the search, in the units of the rows."""
        return self._map.undo(fitted_samples(self.neighbors_)) * self.scale_ + self.location_

    def _require_updatable(self) -> Statistics:
        known = super()._require_updatable()
        fitted_with = None if self._pool is None else self._pool.limit
        if self._limit() != fitted_with:
            raise ValueError(
                f"max_samples or subsampling of this {type(self).__name__} was changed since the "
                "fit, which drew a coreset of another size. Fit again."
            )
        return known

    def _limit(self) -> int | None:
        """Number of samples to keep; None is all."""
        if self.max_samples is None:
            return None
        return self.max_samples * (_POOL if self.subsampling == "greedy" else 1)

    def _fit_samples(
        self,
        statistics: Statistics,
        samples: FloatArray,
        pool: RowSample | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit the search to samples, or a coreset of them, in the units of `statistics`."""
        location, scale = statistics.location_and_scale()
        to_space = self._fit_map(statistics, scale)
        points = to_space.apply(standardize(samples, location, scale))
        if self.max_samples is not None and len(points) > self.max_samples:
            points = points[greedy_k_center(points, self.max_samples, seed)]
        name = type(self).__name__
        check_at_most_n_samples("n_neighbors", self.n_neighbors, len(points), name)
        search = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs)
        self.neighbors_, self._map = search.fit(points), to_space
        self._set_units(location, scale)
        kind = self._kind(statistics.n_samples, len(scale))
        self._statistics, self._pool, self._seed = statistics.reduced(kind), pool, seed
        return self

    def _log_density(self, Z: FloatArray) -> FloatArray:
        n_samples, n_neighbors = self.neighbors_.n_samples_fit_, self.neighbors_.n_neighbors
        distances = self._distances(self._map.apply(Z), n_neighbors)
        return self._log_of(self._radius(distances), n_neighbors / n_samples)

    def _log_density_left_out(self, Z: FloatArray, statistics: Statistics) -> FloatArray:
        n_samples, n_neighbors = self.neighbors_.n_samples_fit_, self.neighbors_.n_neighbors
        if n_samples < 2:
            raise ValueError(
                f"{type(self).__name__} searches one sample (max_samples={self.max_samples}), and "
                "none remains if it is left out. Pass max_samples >= 2."
            )
        distances = self._distances(self._map.apply(Z), min(n_neighbors + 1, n_samples))
        # Of a coreset, not every sample is a member.
        is_member = distances[:, 0] <= _smallest(Z.shape[1])
        n_others = min(n_neighbors, n_samples - 1)
        others = np.where(
            is_member[:, np.newaxis], distances[:, 1 : n_others + 1], distances[:, :n_others]
        )
        return self._log_of(self._radius(others), n_others / (n_samples - is_member))

    def _distances(self, points: FloatArray, n_neighbors: int) -> FloatArray:
        """Distances to the nearest samples, (n_points, n_neighbors), ascending.

        scikit-learn finds the samples by matrix products, whose rounding hides small distances and
        depends on the other points. Differences do neither.
        """
        samples = fitted_samples(self.neighbors_)
        nearest = self.neighbors_.kneighbors(points, n_neighbors, return_distance=False)
        squares = np.empty(nearest.shape)
        for rank, column in enumerate(nearest.T):
            apart = points - samples[column]  # (n_points, n_features)
            squares[:, rank] = np.einsum("ij,ij->i", apart, apart)
        return np.sort(np.sqrt(squares), axis=1)

    def _log_of(self, radius: FloatArray, share: FloatArray | float) -> FloatArray:
        """Log-density of standardized features: a share of the samples in a ball of a radius."""
        n_features = self.n_features_in_
        log_unit_ball = 0.5 * n_features * np.log(np.pi) - gammaln(0.5 * n_features + 1)
        log_radius = np.log(np.maximum(radius, _smallest(n_features)))
        return np.log(share) - log_unit_ball - n_features * log_radius + self._map.log_det

    def _write_state(self, record: StateRecord) -> None:
        super()._write_state(record)
        samples = fitted_samples(self.neighbors_)
        record.write(n_neighbors=int(self.neighbors_.n_neighbors), n_samples=len(samples))
        record.write_tensor("samples", samples)
        if self._pool is not None:
            record.write(pool_seed=int(self._seed))
            self._pool.write_state(record.write_part("pool"))

    def _read_state(self, record: StateRecord) -> None:
        super()._read_state(record)
        n_neighbors = record.read_int("n_neighbors", 1)
        n_samples = record.read_int("n_samples", n_neighbors)
        samples = record.read_array("samples", n_samples, self.n_features_in_)
        self.neighbors_ = NearestNeighbors(n_neighbors=n_neighbors).fit(samples)
        self._map = self._read_map(record)
        self._pool, self._seed = None, 0
        if "pool" in record.values:
            self._seed = record.read_int("pool_seed")
            self._pool = RowSample.read_state(record.read_part("pool"), self.n_features_in_)

    def _read_map(self, record: StateRecord) -> LinearMap:
        """The map that a subclass wrote."""
        return Identity()


def _smallest(n_features: int) -> float:
    return SMALLEST_RADIUS * float(np.sqrt(n_features))


def _salt(seed: int) -> bytes:
    return seed.to_bytes(4, "little")
