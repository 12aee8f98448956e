"""Base classes of the densities: validation, standardization and the change of units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, validate_data

from skanomaly_vit._utils.compat import _fit_context
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

# A covariance holds squares and sums of them; below this bound they cannot overflow.
_LARGEST_VALUE = 1e140

# In standard deviations. Squares of larger values would overflow.
_FARTHEST = 1e100


def _check_values(X: FloatArray, caller: str) -> None:
    """Reject values whose squares overflow."""
    row, column = np.unravel_index(np.abs(X).argmax(), X.shape)
    if abs(X[row, column]) > _LARGEST_VALUE:
        raise ValueError(
            f"{caller} found X[{row}, {column}] = {X[row, column]:.3g}; the squares of values "
            f"beyond {_LARGEST_VALUE:.0e} overflow. Pass that feature in a larger unit."
        )


def check_at_most_n_samples(name: str, value: int, n_samples: int, caller: str) -> None:
    """Reject a parameter that needs more samples than `X` has."""
    if value > n_samples:
        raise ValueError(
            f"{caller} found {name}={value} but n_samples={n_samples} in X. "
            f"Pass {name} <= {n_samples}, or at least {value} samples."
        )


def standardize(X: FloatArray, location: FloatArray, scale: FloatArray) -> FloatArray:
    """Features in standard deviations from their mean."""
    with np.errstate(over="ignore"):
        Z = (X - location) / scale
    return np.clip(Z, -_FARTHEST, _FARTHEST)


class StandardizedDensity(DensityMixin, BaseEstimator, ABC):
    """Base of the density estimators, which model standardized features.

    A subclass learns in `_fit_rows(rows)`, which calls `_set_units` once nothing can fail any more.
    `_log_density(Z)` scores standardized features of shape (n_samples, n_features). `_write_state`
    and `_read_state` save and load further fitted attributes.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]]
    location_: FloatArray
    scale_: FloatArray

    @abstractmethod
    def _fit_rows(self, rows: Rows) -> Self:
        """Fit to at least two rows of finite values up to 1e140, shard by shard."""

    @abstractmethod
    def _log_density(self, Z: FloatArray) -> FloatArray: ...

    @_fit_context(prefer_skip_nested_validation=True)
    @with_own_settings
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
        if len(samples) < 2:
            raise ValueError(
                f"{type(self).__name__} found n_samples=1 in X (shape {samples.shape}); one sample "
                "has no spread. Pass at least 2 samples."
            )
        _check_values(samples, type(self).__name__)
        return self._fit_rows(Rows.of(samples))

    @with_own_settings
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
        return self._log_density(self._standardized(X)) - self._log_units()

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

    def _standardized(self, X: ArrayLike) -> FloatArray:
        """The samples in standard deviations from the mean; checked."""
        check_is_fitted(self, "scale_")
        samples: FloatArray = validate_data(self, X, dtype=np.float64, reset=False)
        return standardize(samples, self.location_, self.scale_)

    def _log_units(self) -> float:
        """Change of variables: p(x) = p(z) |dz/dx|."""
        return float(np.log(self.scale_).sum())

    def _set_units(self, location: FloatArray, scale: FloatArray) -> None:
        self.location_, self.scale_ = location, scale
        self.n_features_in_ = len(location)

    def _write_state(self, record: StateRecord) -> None:
        """Write the fitted attributes; a subclass that has more of them adds those."""
        record.write(n_features=self.n_features_in_)
        record.write_tensor("location", self.location_)
        record.write_tensor("scale", self.scale_)

    def _read_state(self, record: StateRecord) -> None:
        """Set the fitted attributes that `_write_state` wrote; reject impossible ones."""
        self.n_features_in_ = n_features = record.read_int("n_features", 1)
        self.location_ = record.read_array("location", n_features)
        self.scale_ = record.read_array("scale", n_features, positive=True)


class UpdatableDensity(StandardizedDensity):
    """Base of the densities that learn incrementally, from new samples alone.

    A subclass learns from them in `_update_rows(rows)`.
    """

    # None after `_forget_statistics`, and if the density comes from a file of format 1.
    _statistics: Statistics | None

    @_fit_context(prefer_skip_nested_validation=True)
    @with_own_settings
    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Update the density with more normal samples.

        Up to rounding, the result equals a `fit` to all samples. It depends neither on their order
        nor on the batches in which they come.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Feature vectors of normal samples, converted to float64. At least two in the
            first call, which is a `fit`.
        y : object, default=None
            Ignored; present for the API's sake.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If `X` is not as described, the density comes from a file of an older version, which
            has no statistics, or its parameters have changed since the fit.
        """
        if not hasattr(self, "scale_"):
            return self.fit(X)
        self._require_updatable()
        samples: FloatArray = validate_data(self, X, dtype=np.float64, reset=False)
        _check_values(samples, type(self).__name__)
        return self._update_rows(Rows.of(samples))

    @with_own_settings
    def score_left_out(self, X: ArrayLike) -> FloatArray:
        """Compute the log-density of each training sample by the other ones.

        A density has learned from its training samples, so `score_samples` gives them higher scores
        than new ones. Here each sample is new: mean, covariance or neighbours are those of the
        other samples. The notes of the class say what still comes from all samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples: some or all of those in `fit` and `partial_fit`, in any order.

        Returns
        -------
        log_density : ndarray of shape (n_samples,), dtype float64
            As in `score_samples`; higher is more normal. One sample is left out at a time: equal
            ones stay.

        Raises
        ------
        ValueError
            If `X` is not as `score_samples` takes it, the density comes from a file of an older
            version, which has no statistics, or no sample remains.
        """
        Z = self._standardized(X)
        return self._log_density_left_out(Z, self._known_statistics()) - self._log_units()

    @abstractmethod
    def _log_density_left_out(self, Z: FloatArray, statistics: Statistics) -> FloatArray:
        """Log-density of standardized training samples by the other ones."""

    def _forget_statistics(self) -> None:
        """Keep what scores need only: several matrices less. It can no longer be updated."""
        self._statistics = None

    def _known_statistics(self) -> Statistics:
        """Statistics of all samples so far; a ValueError if there are none."""
        if not hasattr(self, "scale_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet")
        if self._statistics is None:
            raise ValueError(
                f"this {type(self).__name__} has kept no statistics, as those from an old model "
                "file or of one place of tiles, so it cannot be updated, and leaves no sample out. "
                "Fit again."
            )
        return self._statistics

    def _require_updatable(self) -> Statistics:
        """Statistics of all samples so far; a ValueError if they cannot be updated."""
        return self._known_statistics()

    def _write_state(self, record: StateRecord) -> None:
        super()._write_state(record)
        if self._statistics is not None:
            self._statistics.write_state(record.write_part("statistics"))

    def _read_state(self, record: StateRecord) -> None:
        super()._read_state(record)
        self._statistics = None
        if "statistics" in record.values:  # not in files of format 1
            self._statistics = Statistics.read_state(
                record.read_part("statistics"), self.n_features_in_
            )

    @abstractmethod
    def _update_rows(self, rows: Rows) -> Self:
        """Update with rows, shard by shard, as `partial_fit` does."""

    @abstractmethod
    def _rescale(self, factor: FloatArray) -> Self:
        """Become the density of all rows so far times a factor for each feature."""


class MomentDensity(UpdatableDensity):
    """Base of the densities that learn from statistics of samples alone.

    A subclass chooses their kind in `_kind` and learns from them in `_fit_statistics`.
    """

    def _fit_rows(self, rows: Rows) -> Self:
        return self._fit_statistics(Statistics.of_shards(rows, self._kind(*rows.shape)))

    def _update_rows(self, rows: Rows) -> Self:
        known = self._require_updatable()
        return self._fit_statistics(known + Statistics.of_shards(rows, known.kind))

    def _rescale(self, factor: FloatArray) -> Self:
        return self._fit_statistics(self._require_updatable().scaled(factor))

    @abstractmethod
    def _kind(self, n_samples: int, n_features: int) -> Kind:
        """Kind of statistics that a fit to this number of samples needs."""

    @abstractmethod
    def _fit_statistics(self, statistics: Statistics) -> Self:
        """Fit to statistics of samples."""
