"""Baselines for the detector to beat: pipelines of parts of this package and scikit-learn.

All of them see images through the same backbone, so comparisons are between methods.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.validation import check_is_fitted, validate_data

from skanomaly_vit._utils.compat import Interval, StrOptions, _fit_context
from skanomaly_vit.density import GaussianDensity


class NeighborDistance(BaseEstimator):
    """Negative mean distance to the nearest normal samples, the score of DN2 [1]_.

    It ranks samples. A training sample is its own nearest neighbour, so training samples give no
    threshold, and there is no ``predict``.

    Parameters
    ----------
    n_neighbors : int, default=2
        Number of neighbours in the mean; all samples if there are fewer.
    metric : {"euclidean", "cosine"}, default="euclidean"
        The distance.

    Attributes
    ----------
    neighbors_ : sklearn.neighbors.NearestNeighbors
        The search.
    n_features_in_ : int
        Number of features seen in `fit`.

    See Also
    --------
    KNNDensity : A log-density of standardised features, from the distance to one neighbour.

    References
    ----------
    .. [1] Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020,
       arXiv 2002.10445.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.evaluation._baselines import NeighborDistance
    >>> NeighborDistance().fit([[0.0], [1.0], [2.0]]).score_samples([[1.0], [5.0]])
    array([-0.5, -3.5])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"euclidean", "cosine"})],
    }

    def __init__(self, *, n_neighbors: int = 2, metric: str = "euclidean") -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Keep the normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Features of normal samples.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If `X` is not finite.
        """
        samples = validate_data(self, X)
        count = min(self.n_neighbors, len(samples))
        self.neighbors_ = NearestNeighbors(n_neighbors=count, metric=self.metric).fit(samples)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Negative mean distance to the nearest normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Features.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            In the units of the metric; higher = more normal, at most 0.

        Raises
        ------
        ValueError
            If not fitted (NotFittedError), or `X` is not as in `fit`.
        """
        check_is_fitted(self)
        samples = validate_data(self, X, reset=False)
        return -self.neighbors_.kneighbors(samples)[0].mean(axis=1)


def _seeded(parameters: dict[str, Any]) -> Any:
    return parameters.get("random_state")


def _features(name: str, parameters: dict[str, Any]) -> Any:
    # Imports torch, which evaluations of fitted detectors can do without.
    return getattr(import_module("skanomaly_vit.features"), name)(**parameters)


def _vit(parameters: dict[str, Any]) -> Any:
    return _features("ViTFeatures", parameters)


def _one_class_svm(parameters: dict[str, Any]) -> list[Any]:
    return [_vit(parameters), StandardScaler(), OneClassSVM(nu=0.1)]


def _isolation_forest(parameters: dict[str, Any]) -> list[Any]:
    return [_vit(parameters), IsolationForest(random_state=_seeded(parameters))]


#: Name -> the steps of a baseline, from the parameters of its features.
BASELINES: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "dn2": lambda parameters: [_vit(parameters), NeighborDistance()],
    "gaussian": lambda parameters: [_vit(parameters), GaussianDensity()],
    "ocsvm": _one_class_svm,
    "isolation_forest": _isolation_forest,
    "panda": lambda parameters: [_features("CompactFeatures", parameters), NeighborDistance()],
    "msad": lambda parameters: [
        _features("MeanShiftedFeatures", parameters),
        NeighborDistance(metric="cosine"),
    ],
}


def make_baseline(name: str, **parameters: Any) -> Pipeline:
    """Make a baseline, a pipeline from images to scores.

    Parameters
    ----------
    name : {"dn2", "gaussian", "ocsvm", "isolation_forest", "panda", "msad"}
        ``"dn2"``: distance to the 2 nearest neighbours of the pre-trained features [1]_;
        ``"gaussian"``: one Gaussian on them, without PCA; ``"ocsvm"``: a one-class SVM
        (``nu=0.1``) on them, standardised; ``"isolation_forest"``; ``"panda"``: as ``"dn2"`` on
        `CompactFeatures` [2]_; ``"msad"``: likewise on `MeanShiftedFeatures`, by cosine [3]_.
        With a few hundred images or fewer the last two are close to ``"dn2"``: at the learning
        rates of their authors, a few steps hardly move the features.
    **parameters : dict
        Parameters of the features, such as `backbone`, `memory` and `random_state`.

    Returns
    -------
    pipeline : sklearn.pipeline.Pipeline
        Unfitted, with ``fit`` and ``score_samples`` (higher = more normal).

    Raises
    ------
    ValueError
        If there is no baseline of that name.

    See Also
    --------
    skanomaly_vit.evaluation.one_vs_rest : Compares baselines with the detector.

    References
    ----------
    .. [1] Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020,
       arXiv 2002.10445.
    .. [2] Reiss, Cohen, Bergman and Hoshen, "PANDA", CVPR 2021, arXiv 2010.05903.
    .. [3] Reiss and Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection", AAAI 2023,
       arXiv 2106.03844.

    Examples
    --------
    >>> from skanomaly_vit.evaluation._baselines import make_baseline
    >>> [name for name, _ in make_baseline("dn2", image_size=56).steps]
    ['vitfeatures', 'neighbordistance']
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(map(repr, BASELINES))}")
    return make_pipeline(*BASELINES[name](parameters))
