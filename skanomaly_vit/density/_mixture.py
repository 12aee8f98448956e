"""Gaussian mixture density."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from sklearn.mixture import GaussianMixture

from skanomaly_vit._utils.compat import Interval, StrOptions, lower_bounds
from skanomaly_vit.density._base import StandardizedDensity, check_at_most_n_samples, standardize
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import FloatArray, Kind, Statistics

if TYPE_CHECKING:
    from skanomaly_vit.persistence._record import StateRecord

#: Parameters whose name in `GaussianMixture` is another one.
_NAMES = {"regularization": "reg_covar"}

#: Fitted attributes of a mixture, beside weights and means.
_ARRAYS = ("covariances", "precisions", "precisions_cholesky")


class GaussianMixtureDensity(StandardizedDensity):
    """Log-density under a mixture of Gaussians.

    For normal samples of several classes: one Gaussian would also cover the empty space between
    them.

    Parameters
    ----------
    n_components : int, default=2
        Number of Gaussians; at most `n_samples`.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        Form of the covariances: one per component, one for all components, diagonal, or one
        variance per component.
    regularization : float, default=1e-6
        Non-negative number added to the variances of the standardized features.
    n_init : int, default=1
        Number of starts; `fit` keeps the best.
    max_iter : int, default=100
        Number of expectation-maximization steps per start.
    random_state : int, RandomState instance or None, default=None
        Source of the starting points; pass an int for results that repeat.

    Attributes
    ----------
    mixture_ : sklearn.mixture.GaussianMixture
        The mixture, fitted to the standardized features.
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
    Expectation-maximization [1]_ finds a local optimum: raise `n_init` if scores depend on
    `random_state`. With fewer than several times `n_features` samples per component, "tied" or
    "diag" is safer than "full". A `sklearn.exceptions.ConvergenceWarning` means that `max_iter` was
    too small or that `X` has fewer distinct samples than components.

    A mixture has no ``score_left_out``: only another fit would tell what it is without a sample.
    `TransformalyDetector` scales its scores by those in sample.

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
        self.mixture_ = self._fit_mixture(standardize(rows.gather(), location, scale))
        self._set_units(location, scale)
        return self

    def _make_mixture(self) -> Any:
        params = self.get_params(deep=False)
        return GaussianMixture(**{_NAMES.get(name, name): value for name, value in params.items()})

    def _fit_mixture(self, Z: FloatArray) -> GaussianMixture:
        mixture = self._make_mixture()
        try:
            return mixture.fit(Z)
        except ValueError as error:
            # scikit-learn's message names `reg_covar`, which is no parameter here.
            raise ValueError(
                f"GaussianMixtureDensity could not fit n_components={self.n_components} to X of "
                f"shape {Z.shape} with regularization={self.regularization}: a component has a "
                "singular covariance. Pass a larger regularization (its default is 1e-6) or "
                "fewer components."
            ) from error

    def _log_density(self, Z: FloatArray) -> FloatArray:
        return self.mixture_.score_samples(Z)

    def _write_state(self, record: StateRecord) -> None:
        super()._write_state(record)
        mixture, part = self.mixture_, record.write_part("mixture")
        # The mixture's own parameters: those of the density may have been set since the fit.
        fitted = {name: getattr(mixture, _NAMES.get(name, name)) for name in self.get_params()}
        part.write_parameters(GaussianMixtureDensity(**fitted))
        for name in ("weights", "means", *_ARRAYS):
            part.write_tensor(name, getattr(mixture, f"{name}_"))
        part.write(
            converged=bool(mixture.converged_),
            n_iter=int(mixture.n_iter_),
            lower_bound=float(mixture.lower_bound_),
            lower_bounds=lower_bounds(mixture),
        )

    def _read_state(self, record: StateRecord) -> None:
        super()._read_state(record)
        part = record.read_part("mixture")
        fitted = part.read_parameters(GaussianMixtureDensity)
        mixture = fitted._make_mixture()
        k, d = fitted.n_components, self.n_features_in_
        mixture.n_features_in_ = d
        mixture.weights_ = part.read_array("weights", k)
        mixture.means_ = part.read_array("means", k, d)
        shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
        for name in _ARRAYS:
            setattr(mixture, f"{name}_", part.read_array(name, *shape[fitted.covariance_type]))
        mixture.converged_ = part.read("converged", bool)
        mixture.n_iter_ = part.read_int("n_iter")
        mixture.lower_bound_ = part.read_number("lower_bound")
        bounds = part.read_list("lower_bounds", float)
        if bounds:  # older versions of scikit-learn keep none
            mixture.lower_bounds_ = bounds
        part.close()
        self.mixture_ = mixture
