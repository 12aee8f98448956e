"""Excess density: one-sided, for errors, where only large values are anomalies."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from skanomaly_vit.density._base import MomentDensity
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

#: Integral of exp(-z^2 / 2) from 0 to infinity.
_HALF_GAUSSIAN = np.sqrt(np.pi / 2)


class ExcessDensity(MomentDensity):
    """Log-density of errors: flat from zero to the mean, half a Gaussian beyond.

    Students may imitate an image better than they imitate normal ones. A Gaussian finds such an
    image improbable, yet it is no anomaly. This density penalizes only values above the mean, and
    treats features as independent.

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
    ``-max(z, 0)^2 / 2 - log(location + scale * sqrt(pi / 2))``; a negative x counts as 0, and a
    negative location, in the last term, too. It comes from no
    paper; docs/explanation/benchmarks.md reports its gain.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import ExcessDensity
    >>> errors = np.random.RandomState(0).normal(10, 1, size=(500, 2))
    >>> ExcessDensity().fit(errors).score_samples([[5, 5], [10, 10], [10, 15]]).round(1)
    array([ -4.8,  -4.8, -17.5])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def _kind(self, n_samples: int, n_features: int) -> Kind:
        return Kind.VARIANCE

    def _fit_statistics(self, statistics: Statistics) -> Self:
        self._set_units(*statistics.location_and_scale())
        self._statistics = statistics.reduced(Kind.VARIANCE)
        return self

    def _log_density(self, Z: FloatArray) -> FloatArray:
        flat = np.maximum(self.location_, 0) / self.scale_
        return -(0.5 * np.maximum(Z, 0) ** 2 + np.log(flat + _HALF_GAUSSIAN)).sum(axis=1)
