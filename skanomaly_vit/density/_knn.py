"""Nearest-neighbour density."""

from __future__ import annotations

import numpy as np

from skanomaly_vit.density._neighbors import NeighborDensity
from skanomaly_vit.density._statistics import FloatArray


class KNNDensity(NeighborDensity):
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
    higher than a new one; far too high with `n_neighbors=1`. `score_left_out` leaves it out of its
    own neighbours; mean and standard deviation stay those of all samples. Radii are at least
    ``1e-6 * sqrt(n_features)``, so duplicates have a finite score.

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

    def _radius(self, distances: FloatArray) -> FloatArray:
        return distances[:, -1]
