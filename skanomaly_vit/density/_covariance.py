"""Covariance of standardized features, shrunk towards its diagonal."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from skanomaly_vit._utils.compat import Interval, StrOptions
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

#: Constraints of the parameters that `shrunk_covariance` takes.
COVARIANCE_CONSTRAINTS: dict[str, list[Any]] = {
    "shrinkage": [StrOptions({"auto", "ledoit_wolf"}), Interval(Real, 0, 1, closed="both")],
    "regularization": [Interval(Real, 0, None, closed="left")],
}


def kind_for(shrinkage: str | float, n_samples: int, n_features: int) -> Kind:
    """Kind of statistics that `shrunk_covariance` needs."""
    fixed = not isinstance(shrinkage, str)
    if fixed or (shrinkage == "auto" and n_samples >= 5 * n_features):
        return Kind.COVARIANCE
    return Kind.SHRINKAGE


def require_kind(known: Statistics, shrinkage: str | float, name: str) -> Statistics:
    """Return statistics that suffice for `shrinkage`; a ValueError of class `name` if not."""
    if known.kind < kind_for(shrinkage, known.n_samples, len(known.mean)):
        raise ValueError(
            f"this {name} was fitted with another shrinkage than {shrinkage!r}, "
            "and its statistics do not suffice to estimate the shrinkage. Fit again."
        )
    return known


def shrunk_covariance(
    statistics: Statistics, scale: FloatArray, shrinkage: str | float, regularization: float
) -> tuple[FloatArray, float]:
    """Covariance of the features divided by `scale`, and the amount of shrinkage.

    Parameters
    ----------
    statistics : Statistics
        Of the kind that `kind_for` names.
    scale : ndarray of shape (n_features,)
    shrinkage : {"auto", "ledoit_wolf"} or float
    regularization : float
        Added to the diagonal.
    """
    covariance = statistics.covariance(scale)
    if kind_for(shrinkage, statistics.n_samples, len(scale)) == Kind.SHRINKAGE:
        amount = shrinkage_of(statistics, scale, covariance)
    else:
        amount = 0.0 if isinstance(shrinkage, str) else float(shrinkage)
    # The shrinkage target is the covariance's own diagonal, so variances stay as they are.
    variance = covariance.diagonal() + regularization
    covariance *= 1 - amount
    np.fill_diagonal(covariance, variance)
    return covariance, amount


def is_singular(smallest: float, n_features: int) -> bool:
    """Whether a squared pivot, or eigenvalue, of a covariance is zero up to rounding.

    Rounding may let a singular matrix pass, with pivots that are noise: of 200 such matrices of
    five features, up to three times their number of epsilons.
    """
    return bool(smallest <= 10 * n_features * np.finfo(np.float64).eps)


def singular_message(name: str, n_features: int, shrinkage: object, regularization: float) -> str:
    """Explain the error of a singular covariance, by the class `name` of the density."""
    return (
        f"{name} found a singular covariance of {n_features} features with "
        f"shrinkage={shrinkage!r} and regularization={regularization}: "
        "features are constant, linearly dependent or more than samples. "
        "Pass a larger regularization (its default is 1e-6)."
    )


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
