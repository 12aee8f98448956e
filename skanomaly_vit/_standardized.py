"""What the density estimators share: validation, standardisation and the change of units.

Discrepancy features of different transformer blocks differ by orders of magnitude, and no density
should care.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from skanomaly_vit._compat import _fit_context

FloatArray = NDArray[np.float64]

_EPS = np.finfo(np.float64).eps
# A covariance holds squares and sums of them; below this bound they cannot overflow.
_LARGEST_VALUE = 1e140
# In standard deviations. Farther out, squares would overflow, and nothing is left to tell apart.
_FARTHEST = 1e100


def _check_training_data(X: FloatArray, caller: str) -> None:
    """Refuse what cannot be standardised: one sample, or values whose squares overflow."""
    if len(X) < 2:
        raise ValueError(
            f"{caller} found n_samples=1 in X (shape {X.shape}); one sample has no spread. "
            "Pass at least 2 samples."
        )
    row, column = np.unravel_index(np.abs(X).argmax(), X.shape)
    if abs(X[row, column]) > _LARGEST_VALUE:
        raise ValueError(
            f"{caller} found X[{row}, {column}] = {X[row, column]:.3g}; the squares of values "
            f"beyond {_LARGEST_VALUE:.0e} overflow. Pass that feature in a larger unit."
        )


def _location_and_scale(X: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each feature, the scale of a constant one being 1."""
    location, scale = X.mean(axis=0), X.std(axis=0)
    # A deviation that rounding alone explains is no deviation: dividing by it would blow noise up
    # to the size of a real feature.
    rounding = len(X) * _EPS * np.abs(location)
    # Rounding exceeds 1 only for constants beyond about 1e12, which would look far from their
    # own mean if they were measured in units of 1.
    return location, np.where(scale <= rounding, np.maximum(rounding, 1.0), scale)


def _standardize(X: FloatArray, location: FloatArray, scale: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        Z = (X - location) / scale
    return np.clip(Z, -_FARTHEST, _FARTHEST)


class StandardizedDensity(DensityMixin, BaseEstimator, ABC):
    """Base of the density estimators, which model standardised features.

    A subclass models standardised features in two steps: `_fit_standardized(Z)` and
    `_log_density(Z)`, Z of shape (n_samples, n_features).
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]]
    location_: FloatArray
    scale_: FloatArray

    @abstractmethod
    def _fit_standardized(self, Z: FloatArray) -> None: ...

    @abstractmethod
    def _log_density(self, Z: FloatArray) -> FloatArray: ...

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit the density to normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Feature vectors of normal samples, converted to float64. At least two.
        y : object, default=None
            Ignored; present for the API's sake.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If `X` has one sample, fewer than the parameters ask for, or a value that is not
            finite or beyond 1e140; or if `regularization` is too small for a singular covariance.
        """
        samples: FloatArray = validate_data(self, X, dtype=np.float64)
        _check_training_data(samples, type(self).__name__)
        location, scale = _location_and_scale(samples)
        self._fit_standardized(_standardize(samples, location, scale))
        # Last, lest a failed fit passes for fitted or mixes two data sets.
        self.location_, self.scale_ = location, scale
        return self

    def score_samples(self, X: ArrayLike) -> FloatArray:
        """Compute the log-density of each sample; higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Feature vectors, converted to float64.

        Returns
        -------
        log_density : ndarray of shape (n_samples,), dtype float64
            Natural logarithm of the density in the units of `X`; finite, may be positive.

        Raises
        ------
        ValueError
            If not fitted (NotFittedError), or `X` has another number of features than in `fit`
            or a value that is not finite.
        """
        check_is_fitted(self, "scale_")
        samples: FloatArray = validate_data(self, X, dtype=np.float64, reset=False)
        Z = _standardize(samples, self.location_, self.scale_)
        # Change of variables: p(x) = p(z) |dz/dx|.
        return self._log_density(Z) - np.log(self.scale_).sum()

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Compute the mean log-density of the samples; higher is a better fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Feature vectors, converted to float64.
        y : object, default=None
            Ignored; present for the API's sake.

        Returns
        -------
        score : float
            Mean of `score_samples(X)`.
        """
        return float(self.score_samples(X).mean())
