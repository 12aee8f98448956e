"""Gaussian density with shrunk covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from skanomaly_vit.density._base import MomentDensity
from skanomaly_vit.density._covariance import (
    COVARIANCE_CONSTRAINTS,
    is_singular,
    kind_for,
    require_kind,
    shrunk_covariance,
    singular_message,
)
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

    `score_left_out` is exact in mean and covariance, by the formula of Sherman and Morrison; the
    standard deviations and the amount of shrinkage stay those of all samples.

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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = COVARIANCE_CONSTRAINTS

    def __init__(self, *, shrinkage: str | float = "auto", regularization: float = 1e-6) -> None:
        self.shrinkage = shrinkage
        self.regularization = regularization

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        return kind_for(self.shrinkage, n_samples, n_features)

    def _fit_statistics(self, statistics: Statistics) -> Self:
        location, scale = statistics.location_and_scale()
        covariance, shrinkage = shrunk_covariance(
            statistics, scale, self.shrinkage, self.regularization
        )
        self.cholesky_ = self._factorize(covariance)
        self.shrinkage_ = shrinkage
        self._set_units(location, scale)
        self._statistics = statistics.reduced(self._kind(statistics.n_samples, len(scale)))
        return self

    def _require_updatable(self) -> Statistics:
        known = super()._require_updatable()
        return require_kind(known, self.shrinkage, type(self).__name__)

    @property
    def covariance_(self) -> FloatArray:
        """Covariance in the units of `X`, shrinkage and regularization included."""
        factor = self.cholesky_ * self.scale_[:, np.newaxis]
        return factor @ factor.T

    def _factorize(self, covariance: FloatArray) -> FloatArray:
        try:
            factor = cholesky(covariance, lower=True)
            if is_singular(factor.diagonal().min() ** 2, len(covariance)):
                raise LinAlgError("a pivot is zero up to rounding")
        except LinAlgError as error:
            message = singular_message(
                "GaussianDensity", len(covariance), self.shrinkage, self.regularization
            )
            raise ValueError(message) from error
        return factor

    def _log_density(self, Z: FloatArray) -> FloatArray:
        return _log_normal(_squared_lengths(self.cholesky_, Z), self.cholesky_)

    def _log_density_left_out(self, Z: FloatArray, statistics: Statistics) -> FloatArray:
        """Log-density by the mean and the covariance of the other samples.

        With d the deviation of a sample from the mean of all n, and C their covariance, that of
        the others is ``n / (n - 1) * C - n / (n - 1)**2 * d d'``. The shrunk covariance of the
        others thus differs from a matrix A, the same for all samples, by a multiple of d d', and
        the Sherman-Morrison formula gives its inverse and its determinant.
        """
        n, kept = statistics.n_samples, 1 - self.shrinkage_
        covariance = statistics.covariance(self.scale_)
        own = self.cholesky_ @ self.cholesky_.T
        target = own.diagonal() - kept * covariance.diagonal()  # (n_features,)
        covariance *= kept * n / (n - 1)
        np.fill_diagonal(covariance, covariance.diagonal() + target)
        factor = cholesky(covariance, lower=True)  # of A
        q, weight = _squared_lengths(factor, Z), kept * n / (n - 1) ** 2
        # A - weight * d d' is at least the target, which bounds this; rounding may fall below.
        least = max(target.min(), np.finfo(np.float64).eps)
        remainder = np.maximum(1 - weight * q, least / (least + weight * np.square(Z).sum(axis=1)))
        outside = (n / (n - 1)) ** 2 * q / remainder
        return _log_normal(outside, factor) - 0.5 * np.log(remainder)

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


def _squared_lengths(factor: FloatArray, Z: FloatArray) -> FloatArray:
    """Squared Mahalanobis length of each row, with the Cholesky factor of a covariance."""
    whitened = solve_triangular(factor, Z.T, lower=True)  # (n_features, n_samples)
    return (whitened**2).sum(axis=0)


def _log_normal(squared_lengths: FloatArray, factor: FloatArray) -> FloatArray:
    """Log-density of a Gaussian at squared Mahalanobis lengths."""
    log_det = 2 * np.log(factor.diagonal()).sum()
    return -0.5 * squared_lengths - 0.5 * (len(factor) * np.log(2 * np.pi) + log_det)
