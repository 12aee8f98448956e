"""Density estimators that score feature vectors by log-density.

Each one standardises the features, models the standardised values and reports the log-density in
the units of the input: discrepancy features of different transformer blocks differ by orders of
magnitude, and no model here should care.
"""

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from sklearn.mixture import GaussianMixture

from skanomaly_vit._compat import Interval, StrOptions
from skanomaly_vit._excess import ExcessDensity
from skanomaly_vit._ledoit_wolf import shrinkage_of
from skanomaly_vit._neighbors import KNNDensity
from skanomaly_vit._rows import Rows, gather
from skanomaly_vit._standardized import (
    StandardizedDensity,
    SummarisedDensity,
    check_at_most_n_samples,
    standardize,
)
from skanomaly_vit._statistics import FloatArray, Kind, Statistics

__all__ = ["ExcessDensity", "GaussianDensity", "GaussianMixtureDensity", "KNNDensity"]


class GaussianDensity(SummarisedDensity):
    """Log-density under one multivariate Gaussian with a full covariance.

    The density that Transformaly puts in each of its two feature spaces [1]_. Ranks samples by
    their Mahalanobis distance to the mean of the normal ones.

    Parameters
    ----------
    shrinkage : {"auto", "ledoit_wolf"} or float, default="auto"
        How far correlations are pulled towards zero, from 0 (the maximum-likelihood covariance)
        to 1 (independent features). "ledoit_wolf" estimates the amount from the data [2]_.
        "auto" is 0 where `n_samples >= 5 * n_features` and "ledoit_wolf" otherwise.
    regularization : float, default=1e-6
        Non-negative number added to the variance of each standardised feature. Keeps the
        covariance invertible where features are constant, duplicated or more than samples.

    Attributes
    ----------
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    covariance_ : ndarray of shape (n_features, n_features), dtype float64
        Covariance in the units of `X`, shrinkage and regularization included.
    cholesky_ : ndarray of shape (n_features, n_features), dtype float64
        Lower Cholesky factor of the covariance of the standardised features.
    shrinkage_ : float
        The amount of shrinkage used.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    GaussianMixtureDensity : Several Gaussians, for several normal classes.
    KNNDensity : No assumption on the shape of the density.
    sklearn.covariance.EllipticEnvelope : A Gaussian fitted to data that holds outliers.

    Notes
    -----
    Features are standardised first; shrinkage is a convex step from the covariance to its own
    diagonal, the identity for standardised features. Hence units change scores by a constant
    only. A constant feature has no unit: a deviation of 1 from it counts as
    ``1 / sqrt(regularization)`` standard deviations.

    References
    ----------
    .. [1] Cohen and Avidan, "Transformaly", CVPR Workshops, 2022, arXiv 2112.04185.
    .. [2] Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
       matrices", Journal of Multivariate Analysis 88(2), 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianDensity
    >>> X = np.random.RandomState(0).normal(size=(500, 2)) * [1e-5, 10.0]
    >>> density = GaussianDensity().fit(X)
    >>> density.score_samples([[0.0, 0.0], [1e-5, 0.0], [0.0, 100.0]]).round(1)
    array([  7.4,   6.8, -42.9])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "shrinkage": [StrOptions({"auto", "ledoit_wolf"}), Interval(Real, 0, 1, closed="both")],
        "regularization": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, shrinkage: str | float = "auto", regularization: float = 1e-6) -> None:
        self.shrinkage = shrinkage
        self.regularization = regularization

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        fixed = not isinstance(self.shrinkage, str)
        if fixed or (self.shrinkage == "auto" and n_samples >= 5 * n_features):
            return Kind.COVARIANCE
        return Kind.SHRINKAGE

    def _fit_statistics(self, statistics: Statistics) -> Self:
        location, scale = statistics.location_and_scale()
        covariance = statistics.covariance(scale)
        kind = self._kind(statistics.n_samples, len(scale))
        if kind == Kind.SHRINKAGE:
            shrinkage = shrinkage_of(statistics, scale, covariance)
        else:
            shrinkage = 0.0 if isinstance(self.shrinkage, str) else float(self.shrinkage)
        # The shrinkage target is the covariance's own diagonal, so variances stay as they are.
        variance = covariance.diagonal() + self.regularization
        covariance *= 1 - shrinkage
        np.fill_diagonal(covariance, variance)
        self.cholesky_ = self._factorize(covariance)
        self.shrinkage_ = shrinkage
        self._set_units(location, scale)
        self._statistics = statistics.reduced(kind)
        return self

    def _require_updatable(self) -> Statistics:
        known = super()._require_updatable()
        if known.kind < self._kind(known.n_samples, len(known.mean)):
            raise ValueError(
                f"this GaussianDensity was fitted with another shrinkage than {self.shrinkage!r}, "
                "and what it keeps of its samples does not tell how far to shrink. Fit again."
            )
        return known

    @property
    def covariance_(self) -> FloatArray:
        """Covariance in the units of `X`, shrinkage and regularization included."""
        factor = self.cholesky_ * self.scale_[:, np.newaxis]
        return factor @ factor.T

    def _factorize(self, covariance: FloatArray) -> FloatArray:
        try:
            factor = cholesky(covariance, lower=True)
            # Rounding may let a singular matrix pass, with pivots that are noise: of 200 such
            # matrices of five features, up to three times their number of epsilons.
            if factor.diagonal().min() ** 2 <= 10 * len(covariance) * np.finfo(np.float64).eps:
                raise LinAlgError("a pivot is zero up to rounding")
        except LinAlgError as error:
            raise ValueError(
                f"GaussianDensity found a singular covariance of {len(covariance)} features with "
                f"shrinkage={self.shrinkage!r} and regularization={self.regularization}: "
                "features are constant, linearly dependent or more than samples. "
                "Pass a larger regularization (its default is 1e-6)."
            ) from error
        return factor

    def _log_density(self, Z: FloatArray) -> FloatArray:
        whitened = solve_triangular(self.cholesky_, Z.T, lower=True)  # (n_features, n_samples)
        log_det = 2 * np.log(self.cholesky_.diagonal()).sum()
        log_norm = 0.5 * (len(whitened) * np.log(2 * np.pi) + log_det)
        return -0.5 * (whitened**2).sum(axis=0) - log_norm


class GaussianMixtureDensity(StandardizedDensity):
    """Log-density under a mixture of Gaussians.

    For normal samples of several classes, whose features one Gaussian would cover together with
    the empty space between them.

    Parameters
    ----------
    n_components : int, default=2
        Number of Gaussians; at most `n_samples`.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        What the covariances may be: one of its own per component, one for all, diagonal, or one
        variance per component.
    regularization : float, default=1e-6
        Non-negative number added to the variances of the standardised features.
    n_init : int, default=1
        Number of starts, of which the best is kept.
    max_iter : int, default=100
        Number of expectation-maximisation steps per start.
    random_state : int, RandomState instance or None, default=None
        Source of the starting points; pass an int for results that repeat.

    Attributes
    ----------
    mixture_ : sklearn.mixture.GaussianMixture
        The mixture, fitted to the standardised features.
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    GaussianDensity : One Gaussian, with a shrunk covariance where samples are few.
    KNNDensity : No assumption on the shape of the density.
    sklearn.mixture.GaussianMixture : The mixture model inside.

    Notes
    -----
    Expectation-maximisation [1]_ finds a local optimum: raise `n_init` if scores depend on
    `random_state`. With fewer than several times `n_features` samples per component, "tied" or
    "diag" is safer than "full". A `sklearn.exceptions.ConvergenceWarning` means that `max_iter` was
    too small or that `X` has fewer distinct samples than components.

    References
    ----------
    .. [1] Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM
       algorithm", Journal of the Royal Statistical Society B 39(1), 1977.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianMixtureDensity
    >>> noise = np.random.RandomState(0).normal(size=(200, 2))
    >>> X = np.vstack([noise - 10, noise + 10])  # two normal classes
    >>> density = GaussianMixtureDensity(n_components=2, random_state=0).fit(X)
    >>> density.score_samples([[-10, -10], [10, 10], [0, 0]]).round()
    array([  -3.,   -3., -109.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "regularization": [Interval(Real, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        n_components: int = 2,
        covariance_type: str = "full",
        regularization: float = 1e-6,
        n_init: int = 1,
        max_iter: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.regularization = regularization
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def _fit_rows(self, rows: Rows) -> Self:
        check_at_most_n_samples(
            "n_components", self.n_components, rows.shape[0], "GaussianMixtureDensity"
        )
        location, scale = Statistics.of_shards(rows, Kind.VARIANCE).location_and_scale()
        self.mixture_ = self._fit_mixture(standardize(gather(rows), location, scale))
        self._set_units(location, scale)
        return self

    def _fit_mixture(self, Z: FloatArray) -> GaussianMixture:
        params = self.get_params(deep=False)  # GaussianMixture's own names, but for one
        mixture = GaussianMixture(reg_covar=params.pop("regularization"), **params)
        try:
            return mixture.fit(Z)
        except ValueError as error:
            # scikit-learn's own message advises on `reg_covar`, which is no parameter here.
            raise ValueError(
                f"GaussianMixtureDensity could not fit n_components={self.n_components} to X of "
                f"shape {Z.shape} with regularization={self.regularization}: a component has a "
                "singular covariance. Pass a larger regularization (its default is 1e-6) or "
                "fewer components."
            ) from error

    def _log_density(self, Z: FloatArray) -> FloatArray:
        return self.mixture_.score_samples(Z)
