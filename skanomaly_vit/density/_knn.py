"""Nearest-neighbour density, and the greedy coreset that bounds its memory."""

from __future__ import annotations

import dataclasses
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from sklearn.neighbors import NearestNeighbors
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import check_random_state

from skanomaly_vit._utils.compat import Interval, StrOptions, fitted_samples
from skanomaly_vit.density._base import UpdatableDensity, check_at_most_n_samples, standardize
from skanomaly_vit.density._row_sample import RowSample
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

# In units of sqrt(n_features), the root mean square distance of a sample from the mean. Thirty
# times the distance that rounding gives two equal points (about sqrt(machine epsilon)).
SMALLEST_RADIUS = 1e-6

#: Samples drawn for each one that a greedy coreset takes.
_POOL = 10


def _salt(seed: int) -> bytes:
    return seed.to_bytes(4, "little")


class KNNDensity(UpdatableDensity):
    """Log-density estimated from the distance to the k-th nearest neighbour.

    Assumes no shape of the density. Ranks samples by the radius of the smallest ball around them
    that holds `n_neighbors` normal samples.

    Parameters
    ----------
    n_neighbors : int, default=5
        Rank of the neighbour whose distance gives the density; at most `n_samples`.
    max_samples : int or None, default=None
        Largest number of samples to search: a *coreset* of the training samples. ``None`` searches
        all.
    subsampling : {"random", "greedy"}, default="random"
        Choice of the coreset. ``"random"`` draws it, so it has the density of all samples.
        ``"greedy"`` draws ten times as many, then repeatedly takes the one farthest from all taken
        before (k-center greedy, as in PatchCore [3]_): few samples then cover the whole space, at
        a uniform density.
    n_jobs : int or None, default=None
        Number of parallel jobs of the search, as in scikit-learn.
    random_state : int, RandomState instance or None, default=None
        Seed of the coreset; pass an int for results that repeat. The draw depends on the values of
        the samples, neither on their order nor on the batches in which they come.

    Attributes
    ----------
    neighbors_ : sklearn.neighbors.NearestNeighbors
        The search, fitted to the standardized features.
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    GaussianDensity : One Gaussian, the cheapest.
    GaussianMixtureDensity : Several Gaussians, for several normal classes.
    sklearn.neighbors.KernelDensity : Neighbours weighted by a kernel of fixed width.

    Notes
    -----
    With V the volume of the unit ball, d the number of features, n of training samples, k of
    neighbours and r the Euclidean distance to the k-th one, the estimate [1]_ is
    ``log k - log n - log V - d log r``. Its tails are too heavy to integrate to 1. DN2 [2]_ ranks
    by the mean of such distances. A training sample is its own nearest neighbour, so it scores
    higher than a new one; far too high with `n_neighbors=1`. Radii are
    at least ``1e-6 * sqrt(n_features)``, so duplicates have a finite score.

    References
    ----------
    .. [1] Loftsgaarden and Quesenberry, "A nonparametric estimate of a multivariate density
       function", Annals of Mathematical Statistics 36(3), 1965.
    .. [2] Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020,
       arXiv 2002.10445.
    .. [3] Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial
       Anomaly Detection", CVPR, 2022, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import KNNDensity
    >>> X = np.random.RandomState(0).uniform(size=(1000, 2))
    >>> KNNDensity(n_neighbors=50).fit(X).score_samples([[0.5, 0.5], [3.0, 3.0]]).round(2)
    array([-0.03, -6.37])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_samples": [Interval(Integral, 1, None, closed="left"), None],
        "subsampling": [StrOptions({"random", "greedy"})],
        "n_jobs": [None, Integral],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        max_samples: int | None = None,
        subsampling: str = "random",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.max_samples = max_samples
        self.subsampling = subsampling
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _fit_rows(self, rows: Rows) -> Self:
        statistics = Statistics.of_shards(rows, Kind.VARIANCE)
        limit = self._limit()
        if limit is None:
            return self._fit_samples(statistics, rows.gather())
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        pool = RowSample.of_shards(rows, limit, _salt(seed))
        return self._fit_samples(statistics, pool.rows, pool, seed)

    def _update_rows(self, rows: Rows) -> Self:
        known = self._require_updatable()
        statistics = known + Statistics.of_shards(rows, Kind.VARIANCE)
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
        return fitted_samples(self.neighbors_) * self.scale_ + self.location_

    def _require_updatable(self) -> Statistics:
        known = super()._require_updatable()
        fitted_with = None if self._pool is None else self._pool.limit
        if self._limit() != fitted_with:
            raise ValueError(
                "max_samples or subsampling of this KNNDensity was changed since the fit, which "
                "drew a coreset of another size. Fit again."
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
        Z = standardize(samples, location, scale)
        if self.max_samples is not None and len(Z) > self.max_samples:
            Z = Z[greedy_k_center(Z, self.max_samples, seed)]
        check_at_most_n_samples("n_neighbors", self.n_neighbors, len(Z), "KNNDensity")
        search = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs)
        self.neighbors_ = search.fit(Z)
        self._set_units(location, scale)
        self._statistics, self._pool, self._seed = statistics, pool, seed
        return self

    def _log_density(self, Z: FloatArray) -> FloatArray:
        n_features = Z.shape[1]
        distances, _ = self.neighbors_.kneighbors(Z)  # (n_samples, n_neighbors), ascending
        radius = np.maximum(distances[:, -1], SMALLEST_RADIUS * np.sqrt(n_features))
        log_unit_ball = 0.5 * n_features * np.log(np.pi) - gammaln(0.5 * n_features + 1)
        log_share = np.log(self.neighbors_.n_neighbors / self.neighbors_.n_samples_fit_)
        return log_share - log_unit_ball - n_features * np.log(radius)

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
        self._pool, self._seed = None, 0
        if "pool" in record.values:
            self._seed = record.read_int("pool_seed")
            self._pool = RowSample.read_state(record.read_part("pool"), self.n_features_in_)


#: Rows of more dimensions are projected to this number at random. Distances change by some 10 %
#: and cost a fraction.
N_PROJECTED = 128


def greedy_k_center(rows: FloatArray, n_chosen: int, seed: int) -> NDArray[np.intp]:
    """Choose rows, each as far as possible from those chosen before it.

    Without a projection, the largest distance from any row to its nearest chosen one is at most
    twice the optimum for `n_chosen` rows (T. F. Gonzalez, Theoretical Computer Science 38, 1985).
    PatchCore (Roth et al., CVPR 2022, section 3.2) fills its memory in the same way.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_features)
        The first one is chosen first.
    n_chosen : int
        At most n_rows.
    seed : int
        Of the projection.

    Returns
    -------
    chosen : ndarray of int of shape (n_chosen,)
        Positions, all different.
    """
    if rows.shape[1] > N_PROJECTED:
        projection = GaussianRandomProjection(N_PROJECTED, random_state=seed)
        rows = projection.fit_transform(rows)
    points = rows.astype(np.float32)  # distances are only compared
    squares = np.einsum("ij,ij->i", points, points)
    chosen = np.zeros(n_chosen, dtype=np.intp)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for i in range(1, n_chosen):
        last = chosen[i - 1]
        distances = squares - 2 * (points @ points[last]) + squares[last]
        np.minimum(nearest, np.maximum(distances, 0), out=nearest)
        nearest[last] = -1  # never chosen again, even if other rows equal it
        chosen[i] = nearest.argmax()
    return chosen
