"""Nearest neighbours in the whitened space."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from skanomaly_vit._utils.compat import Interval
from skanomaly_vit.density._covariance import (
    COVARIANCE_CONSTRAINTS,
    is_singular,
    kind_for,
    require_kind,
    shrunk_covariance,
    singular_message,
)
from skanomaly_vit.density._neighbors import NEIGHBOR_CONSTRAINTS, LinearMap, NeighborDensity
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

#: Rows of one product. A row's product rounds alike in each of them, whatever the other rows are.
_BLOCK = 64


class WhitenedKNNDensity(NeighborDensity):
    """Log-density estimated from the distance to neighbours in the whitened space.

    A distance in the whitened space counts each direction in units of its own standard deviation,
    as the Mahalanobis distance does: a deviation where normal samples hardly differ counts more
    than one where they differ widely. Unlike a Gaussian, neighbours assume no single cluster.

    Parameters
    ----------
    n_neighbors : int, default=2
        Number of neighbours whose mean distance gives the density; at most `n_samples`.
    whitening_exponent : float, default=0.5
        Exponent t, from 0 to 0.5, of the whitening matrix ``S**-t``, with S the covariance of the
        standardized features. 0.5 whitens: all directions have variance 1. 0.25 takes the standard
        deviations of all directions halfway to 1, in logarithms. 0 leaves standardized features as
        they are.
    shrinkage : {"auto", "ledoit_wolf"} or float, default="ledoit_wolf"
        Shrinkage of S, as in `GaussianDensity`.
    regularization : float, default=1e-6
        Non-negative number added to the variance of each standardized feature, as in
        `GaussianDensity`.
    max_samples : int or None, default=None
        Largest number of samples to search: a *coreset* of the training samples. ``None`` searches
        all. S comes from all of them.
    subsampling : {"random", "greedy"}, default="random"
        Choice of the coreset, as in `KNNDensity`; ``"greedy"`` compares distances in the whitened
        space.
    n_jobs : int or None, default=None
        Number of parallel jobs of the search, as in scikit-learn.
    random_state : int, RandomState instance or None, default=None
        Seed of the coreset, as in `KNNDensity`.

    Attributes
    ----------
    neighbors_ : sklearn.neighbors.NearestNeighbors
        The search, fitted to the whitened features.
    whitening_ : ndarray of shape (n_features, n_features), dtype float64
        The symmetric matrix ``S**-t``, by which rows of standardized features are multiplied.
    shrinkage_ : float
        The amount of shrinkage used.
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    KNNDensity : Neighbours among standardized features.
    GaussianDensity : The distance to the mean in the same space.

    Notes
    -----
    With u the whitened features, k the number of neighbours, n that of training samples, d that of
    features, V the volume of the unit ball and r the mean distance of u to its k nearest training
    samples, the score is ``log k - log n - log V - d log r + log det S**-t``, in the units of `X`:
    the estimate of `KNNDensity` [1]_ with the mean distance for that to the k-th neighbour, as in
    [2]_. Shrinkage [3]_ keeps S regular with fewer samples than features. A constant feature is
    treated as in `GaussianDensity`. Radii are at least ``1e-6 * sqrt(n_features)``, so duplicates
    have a finite score.

    `score_left_out` leaves a sample out of its own neighbours; mean, standard deviation and S stay
    those of all samples. Where these are few beside `n_features`, its scores are thus still
    higher than those of new samples.

    References
    ----------
    .. [1] Loftsgaarden and Quesenberry, "A nonparametric estimate of a multivariate density
       function", Annals of Mathematical Statistics 36(3), 1965.
    .. [2] Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020,
       arXiv 2002.10445.
    .. [3] Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
       matrices", Journal of Multivariate Analysis 88(2), 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import WhitenedKNNDensity
    >>> a, b = np.random.RandomState(0).normal(size=(2, 500))
    >>> X = np.column_stack([a, a + 0.1 * b])  # hardly differs across the diagonal
    >>> WhitenedKNNDensity().fit(X).score_samples([[0, 0], [1, 1], [0.5, -0.5]]).round(1)
    array([ 0.4,  0.2, -7.9])
    """

    _map: Whitening

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NEIGHBOR_CONSTRAINTS,
        **COVARIANCE_CONSTRAINTS,
        "whitening_exponent": [Interval(Real, 0, 0.5, closed="both")],
    }

    def __init__(
        self,
        *,
        n_neighbors: int = 2,
        whitening_exponent: float = 0.5,
        shrinkage: str | float = "ledoit_wolf",
        regularization: float = 1e-6,
        max_samples: int | None = None,
        subsampling: str = "random",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.whitening_exponent = whitening_exponent
        self.shrinkage = shrinkage
        self.regularization = regularization
        self.max_samples = max_samples
        self.subsampling = subsampling
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def whitening_(self) -> FloatArray:
        """The symmetric matrix ``S**-t``, of shape (n_features, n_features)."""
        return self._map.matrix

    @property
    def shrinkage_(self) -> float:
        """The amount of shrinkage used."""
        return self._map.shrinkage

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        return kind_for(self.shrinkage, n_samples, n_features)

    def _require_updatable(self) -> Statistics:
        known = super()._require_updatable()
        return require_kind(known, self.shrinkage, type(self).__name__)

    def _fit_map(self, statistics: Statistics, scale: FloatArray) -> LinearMap:
        covariance, shrinkage = shrunk_covariance(
            statistics, scale, self.shrinkage, self.regularization
        )
        variances, axes = np.linalg.eigh(covariance)
        if is_singular(variances[0], len(variances)):
            name = type(self).__name__
            raise ValueError(
                singular_message(name, len(variances), self.shrinkage, self.regularization)
            )
        exponent = float(self.whitening_exponent)
        log_det = -exponent * float(np.log(variances).sum())
        return Whitening((axes * variances**-exponent) @ axes.T, log_det, shrinkage)

    def _radius(self, distances: FloatArray) -> FloatArray:
        return distances.mean(axis=1)

    def _write_state(self, record: StateRecord) -> None:
        super()._write_state(record)
        record.write_tensor("whitening", self._map.matrix)
        record.write(log_det=self._map.log_det, shrinkage=self._map.shrinkage)

    def _read_map(self, record: StateRecord) -> LinearMap:
        matrix = record.read_array("whitening", *[self.n_features_in_] * 2)
        if not (matrix.diagonal() > 0).all():
            raise ValueError(f"{record.name}.whitening has a diagonal that is not positive")
        return Whitening(matrix, record.read_number("log_det"), record.read_number("shrinkage"))


@dataclass(frozen=True, eq=False)
class Whitening:
    """Multiplication by a symmetric, regular matrix.

    Attributes
    ----------
    matrix : ndarray of shape (n_features, n_features)
    log_det : float
        Logarithm of its determinant.
    shrinkage : float
        Of the covariance that it comes from.
    """

    matrix: FloatArray
    log_det: float
    shrinkage: float

    def apply(self, Z: FloatArray) -> FloatArray:
        """Map rows; the result of a row has the same bits, whatever the others are."""
        n_features = len(self.matrix)
        blocks = np.zeros((-(-len(Z) // _BLOCK), _BLOCK, n_features))
        blocks.reshape(-1, n_features)[: len(Z)] = Z
        return (blocks @ self.matrix).reshape(-1, n_features)[: len(Z)]

    def undo(self, points: FloatArray) -> FloatArray:
        """Map them back."""
        return np.asarray(np.linalg.solve(self.matrix, points.T).T, dtype=np.float64)
