"""Excess density: one-sided, for errors, where only large values are anomalies."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from skanomaly_vit._utils.compat import StrOptions
from skanomaly_vit.density._base import MomentDensity
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

#: Integral of exp(-z^2 / 2) from 0 to infinity.
_HALF_GAUSSIAN = np.sqrt(np.pi / 2)


class ExcessDensity(MomentDensity):
    """Log-density of errors: flat from zero to the mean, half a Gaussian or exponential beyond.

    Students may imitate an image better than they imitate normal ones. A Gaussian finds such an
    image improbable, yet it is no anomaly. This density penalizes only values above the mean, and
    treats features as independent.

    Parameters
    ----------
    tail : {"gaussian", "exponential"}, default="gaussian"
        Decay beyond the mean: of the square of the excess, or of the excess itself, with which one
        large error counts less against several moderate ones.

    Attributes
    ----------
    location_, scale_ : ndarray of shape (n_features,), dtype float64
        Mean and standard deviation of each feature; 1 for the latter where it is constant.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    GaussianDensity : Counts deviations to both sides, and correlations.

    Notes
    -----
    With z = (x - location) / scale, the log-density of a feature x >= 0 is
    ``-max(z, 0)^2 / 2 - log(location + scale * sqrt(pi / 2))``, with an exponential tail
    ``-max(z, 0) - log(location + scale)``; a negative x counts as 0, and a
    negative location, in the last term, too. It comes from no
    paper; docs/explanation/benchmarks.md reports its gain. `score_left_out` is exact: mean and
    standard deviation are those of the other samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import ExcessDensity
    >>> errors = np.random.RandomState(0).normal(10, 1, size=(500, 2))
    >>> ExcessDensity().fit(errors).score_samples([[5, 5], [10, 10], [10, 15]]).round(1)
    array([ -4.8,  -4.8, -17.5])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "tail": [StrOptions({"gaussian", "exponential"})],
    }

    def __init__(self, *, tail: str = "gaussian") -> None:
        self.tail = tail

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        return Kind.VARIANCE

    def _fit_statistics(self, statistics: Statistics) -> Self:
        self._set_units(*statistics.location_and_scale())
        self._statistics = statistics.reduced(Kind.VARIANCE)
        return self

    def _log_density(self, Z: FloatArray) -> FloatArray:
        return self._log_one_sided(Z, self.location_, self.scale_).sum(axis=1)

    def _log_density_left_out(self, Z: FloatArray, statistics: Statistics) -> FloatArray:
        n = statistics.n_samples
        # Mean and variance of the others, in the units of all.
        location = -Z / (n - 1)
        variance = n / (n - 1) * (statistics.variance(self.scale_) - Z**2 / (n - 1))
        # Rounding is left where the others are equal; the unit is then that of all.
        scale = np.sqrt(np.where(variance > n * np.finfo(np.float64).eps, variance, 1.0))
        found = self._log_one_sided(
            (Z - location) / scale, self.location_ + self.scale_ * location, self.scale_ * scale
        )
        return (found - np.log(scale)).sum(axis=1)

    def _log_one_sided(self, Z: FloatArray, location: FloatArray, scale: FloatArray) -> FloatArray:
        """Log-density of each feature, in the unit `scale`."""
        flat = np.maximum(location, 0) / scale
        excess = np.maximum(Z, 0)
        if self.tail == "exponential":
            return -(excess + np.log(flat + 1))
        return -(0.5 * excess**2 + np.log(flat + _HALF_GAUSSIAN))
