"""Gaussian density with shrunk covariance."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from skanomaly_vit._utils.compat import Interval, StrOptions
from skanomaly_vit.density._base import MomentDensity
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord


class GaussianDensity(MomentDensity):
    """Log-density under one multivariate Gaussian with a full covariance.

    The density that Transformaly puts in each of its two feature spaces [1]_. Ranks samples by
    their Mahalanobis distance to the mean of the normal ones.

    Parameters
    ----------
    shrinkage : {"auto", "ledoit_wolf"} or float, default="auto"
        Pull of correlations towards zero, from 0 (the maximum-likelihood covariance) to 1
        (independent features). "ledoit_wolf" estimates the amount from the data [2]_.
        "auto" is 0 where `n_samples >= 5 * n_features` and "ledoit_wolf" otherwise.
    regularization : float, default=1e-6
        Non-negative number added to the variance of each standardized feature. Keeps the
        covariance invertible where features are constant, duplicated or more than samples.

    Attributes
    ----------
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    covariance_ : ndarray of shape (n_features, n_features), dtype float64
        Covariance in the units of `X`, shrinkage and regularization included.
    cholesky_ : ndarray of shape (n_features, n_features), dtype float64
        Lower Cholesky factor of the covariance of the standardized features.
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
    Features are standardized first; shrinkage is a convex step from the covariance to its own
    diagonal, the identity for standardized features. Hence units change scores by a constant
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
                "and its statistics do not suffice to estimate the shrinkage. Fit again."
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

    def _write_state(self, record: StateRecord) -> None:
        super()._write_state(record)
        record.write_tensor("cholesky", self.cholesky_)
        record.write(shrinkage=self.shrinkage_)

    def _read_state(self, record: StateRecord) -> None:
        super()._read_state(record)
        self.cholesky_ = record.read_array("cholesky", *[self.n_features_in_] * 2)
        self.shrinkage_ = record.read_number("shrinkage")
        if not (self.cholesky_.diagonal() > 0).all():
            raise ValueError(f"{record.name}.cholesky has a diagonal that is not positive")


#: A covariance of standardized features whose mean squared difference from the identity is at most
#: this differs from it by rounding alone. Sampling alone gives about 1 / n_samples.
_ROUNDING = 1e-16


def shrinkage_of(statistics: Statistics, scale: FloatArray, covariance: FloatArray) -> float:
    """Ledoit-Wolf shrinkage of standardized features, from statistics.

    Equals `sklearn.covariance.ledoit_wolf_shrinkage` of all rows (O. Ledoit and M. Wolf, Journal of
    Multivariate Analysis 88(2), 2004).

    Parameters
    ----------
    statistics : Statistics
        Of the kind `Kind.SHRINKAGE`, unless the covariance is the identity.
    scale : ndarray of shape (n_features,)
        By which features are divided.
    covariance : ndarray of shape (n_features, n_features)
        Of the features divided by `scale`.
    """
    # Constant features have no correlations to shrink, and would lower the mean variance, the
    # diagonal of the target. Standardized variances are either 0 or 1.
    varying = covariance.diagonal() > 0.5
    n_features = int(varying.sum())
    if n_features < 2:
        return 0.0
    within = covariance[np.ix_(varying, varying)]
    mean_variance = within.trace() / n_features
    target = mean_variance * np.eye(n_features)
    distance = np.square(within - target).sum() / n_features
    if distance <= _ROUNDING:
        return 1.0  # it is its own target, as behind a whitening PCA
    noise = statistics.mean_fourth_power(scale, varying) - np.square(within).sum()
    # Rounding may bring it below zero.
    noise = max(noise / (n_features * statistics.n_samples), 0.0)
    return float(min(noise, distance) / distance)
