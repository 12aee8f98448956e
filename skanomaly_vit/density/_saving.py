"""Fitted densities, taken apart for a model file and rebuilt from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline

from skanomaly_vit._utils.compat import fitted_samples
from skanomaly_vit.density._base import StandardizedDensity, UpdatableDensity
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.density._excess import ExcessDensity
from skanomaly_vit.density._gaussian import GaussianDensity
from skanomaly_vit.density._knn import KNNDensity
from skanomaly_vit.density._mixture import GaussianMixtureDensity
from skanomaly_vit.density._row_sample import RowSample
from skanomaly_vit.density._statistics import Kind, Statistics
from skanomaly_vit.density._whitening import make_pca
from skanomaly_vit.persistence._record import (
    Record,
    name_of,
    put_parameters,
    take_dtype,
    take_parameters,
)

_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in DENSITIES.values()}


def describe_density(density: Any) -> dict[str, Any]:
    """JSON for a density as it is given as a parameter, not fitted.

    Raises
    ------
    ValueError
        If it is none of ours.
    """
    name = _name_of(density)
    record = Record({}, {}, "density")
    put_parameters(record, density)
    return {"class": name, **record.values}


def build_density(record: Record) -> StandardizedDensity:
    """The inverse of `describe_density`."""
    name = record.take("class", str)
    if name not in _CLASSES:
        raise ValueError(f"{record.name} is of the unknown class {name!r}")
    return take_parameters(record, _CLASSES[name])


def put_scorer(record: Record, scorer: Any) -> None:
    """Write a fitted density, or the pipeline of PCA and density that `fit_density` makes."""
    density = scorer
    if type(scorer) is Pipeline and [type(step) for _, step in scorer.steps[:-1]] == [PCA]:
        density = scorer[-1]
        _put_pca(record.put_part("pca"), scorer[0])
    _put_density(record, density)


def take_scorer(record: Record) -> tuple[Any, int]:
    """The inverse of `put_scorer`; with the number of features that it takes."""
    pca, n_features = None, None
    if "pca" in record.values:
        part = record.take_part("pca")
        pca = _take_pca(part)
        part.close()
        n_features = pca.n_components_
    density = _take_density(record)
    record.close()
    if pca is None:
        return density, density.n_features_in_
    if density.n_features_in_ != n_features:
        raise ValueError(f"{record.name} takes {density.n_features_in_} features of {n_features}")
    return Pipeline([("pca", pca), ("density", density)]), pca.n_features_in_


def _name_of(density: Any) -> str:
    name = type(density).__name__
    if _CLASSES.get(name) is not type(density):
        raise ValueError(
            f"density={name} cannot be saved safely: only a pickle holds any estimator, and a "
            "pickle can run code. Use one of "
            f"{', '.join(_CLASSES)}, or joblib.dump after reading SECURITY.md."
        )
    return name


def _put_density(record: Record, density: Any) -> None:
    record.put(**describe_density(density), n_features=density.n_features_in_)
    record.put_tensor("location", density.location_)
    record.put_tensor("scale", density.scale_)
    if isinstance(density, UpdatableDensity):
        put_statistics(record, density._statistics)
    _PARTS[type(density)][0](record, density)


def _take_density(record: Record) -> Any:
    density: Any = build_density(record)
    density.n_features_in_ = n_features = record.take_int("n_features", 1)
    density.location_ = record.take_array("location", n_features)
    density.scale_ = record.take_array("scale", n_features, positive=True)
    if isinstance(density, UpdatableDensity):
        density._statistics = take_statistics(record, n_features)
    _PARTS[type(density)][1](record, density)
    return density


def _put_gaussian(record: Record, density: GaussianDensity) -> None:
    record.put_tensor("cholesky", density.cholesky_)
    record.put(shrinkage=density.shrinkage_)


def _take_gaussian(record: Record, density: Any) -> None:
    density.cholesky_ = record.take_array("cholesky", *[density.n_features_in_] * 2)
    density.shrinkage_ = record.take_number("shrinkage")
    if not (density.cholesky_.diagonal() > 0).all():
        raise ValueError(f"{record.name}.cholesky has a diagonal that is not positive")


def _put_nothing(record: Record, density: ExcessDensity) -> None:
    """Location and scale are all there is."""


def _put_neighbors(record: Record, density: KNNDensity) -> None:
    samples = fitted_samples(density.neighbors_)
    record.put(n_neighbors=int(density.neighbors_.n_neighbors), n_samples=len(samples))
    record.put_tensor("samples", samples)
    if density._pool is not None:
        record.put(pool_seed=int(density._seed))
        put_sample(record.put_part("pool"), density._pool)


def _take_neighbors(record: Record, density: Any) -> None:
    n_neighbors = record.take_int("n_neighbors", 1)
    n_samples = record.take_int("n_samples", n_neighbors)
    samples = record.take_array("samples", n_samples, density.n_features_in_)
    density.neighbors_ = NearestNeighbors(n_neighbors=n_neighbors).fit(samples)
    density._pool, density._seed = None, 0
    if "pool" in record.values:
        density._seed = record.take_int("pool_seed")
        density._pool = take_sample(record.take_part("pool"), density.n_features_in_)


#: What a mixture has learned, beside weights, means and covariances.
_MIXTURE_ARRAYS = ("covariances", "precisions", "precisions_cholesky")


def _put_mixture(record: Record, density: GaussianMixtureDensity) -> None:
    mixture = density.mixture_
    own = density.get_params(deep=False)
    part = record.put_part("mixture")
    # Those that it was fitted with; the density's own may have been set since.
    fitted = {name: getattr(mixture, _MIXTURE_NAMES.get(name, name)) for name in own}
    put_parameters(part, GaussianMixtureDensity(**fitted))
    for name in ("weights", "means", *_MIXTURE_ARRAYS):
        part.put_tensor(name, getattr(mixture, f"{name}_"))
    part.put(
        converged=bool(mixture.converged_),
        n_iter=int(mixture.n_iter_),
        lower_bound=float(mixture.lower_bound_),
        lower_bounds=[float(bound) for bound in mixture.lower_bounds_],
    )


def _take_mixture(record: Record, density: Any) -> None:
    part = record.take_part("mixture")
    fitted = take_parameters(part, GaussianMixtureDensity)
    names = _MIXTURE_NAMES
    params = {names.get(k, k): v for k, v in fitted.get_params(deep=False).items()}
    mixture: Any = GaussianMixture(**params)
    k, d = fitted.n_components, density.n_features_in_
    mixture.n_features_in_ = d
    mixture.weights_ = part.take_array("weights", k)
    mixture.means_ = part.take_array("means", k, d)
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    for name in _MIXTURE_ARRAYS:
        array = part.take_array(name, *shape[fitted.covariance_type])
        setattr(mixture, f"{name}_", array)
    mixture.converged_ = part.take("converged", bool)
    mixture.n_iter_ = part.take_int("n_iter")
    mixture.lower_bound_ = part.take_number("lower_bound")
    mixture.lower_bounds_ = part.take_list("lower_bounds", float)
    part.close()
    density.mixture_ = mixture


_MIXTURE_NAMES = {"regularization": "reg_covar"}

_PARTS: dict[type, tuple[Callable[[Record, Any], None], Callable[[Record, Any], None]]] = {
    GaussianDensity: (_put_gaussian, _take_gaussian),
    GaussianMixtureDensity: (_put_mixture, _take_mixture),
    KNNDensity: (_put_neighbors, _take_neighbors),
    ExcessDensity: (_put_nothing, _put_nothing),
}

_PCA_SPECTRUM = ("explained_variance", "explained_variance_ratio", "singular_values")


def _put_pca(record: Record, pca: PCA) -> None:
    record.put(
        variance=float(pca.n_components),
        n_components=int(pca.n_components_),
        n_features=int(pca.n_features_in_),
        n_samples=int(pca.n_samples_),
        noise_variance=float(pca.noise_variance_),
    )
    for name in ("components", "mean", *_PCA_SPECTRUM):
        record.put_tensor(name, getattr(pca, f"{name}_"))


def _take_pca(record: Record) -> PCA:
    variance = record.take_number("variance", positive=True)
    if variance >= 1:
        raise ValueError(f"{record.name}.variance is {variance}; a share below 1 is possible")
    pca: Any = make_pca(variance)
    pca._fit_svd_solver = pca.svd_solver
    pca.n_components_ = k = record.take_int("n_components", 1)
    pca.n_features_in_ = d = record.take_int("n_features", 1)
    pca.n_samples_ = record.take_int("n_samples", 1)
    pca.noise_variance_ = np.float64(record.take_number("noise_variance"))
    pca.components_ = record.take_array("components", k, d)
    pca.mean_ = record.take_array("mean", d)
    for name in _PCA_SPECTRUM:
        setattr(pca, f"{name}_", record.take_array(name, k, positive=name == _PCA_SPECTRUM[0]))
    return pca


#: Kind -> square matrices that statistics of it hold.
_MATRICES: dict[Kind, tuple[str, ...]] = {
    Kind.VARIANCE: (),
    Kind.COVARIANCE: ("scatter",),
    Kind.SHRINKAGE: ("scatter", "cubes", "fourths"),
}

#: No float64 has a larger one, and statistics none that is lower than this below 0.
_LARGEST_EXPONENT = 2048


def put_statistics(record: Record, statistics: Statistics | None) -> None:
    """Write statistics as a part of `record`; nothing if there are none."""
    if statistics is None:
        return
    part = record.put_part("statistics")
    part.put(n_samples=int(statistics.n_samples), kind=int(statistics.kind))
    part.put_tensor("exponent", statistics.exponent.astype(np.float64))
    for name in ("mean", "square", *_MATRICES[statistics.kind]):
        part.put_tensor(name, getattr(statistics, name))


def take_statistics(record: Record, n_features: int) -> Statistics | None:
    """The inverse of `put_statistics`; files of format 1 hold none."""
    if "statistics" not in record.values:
        return None
    part = record.take_part("statistics")
    n_samples, kind = part.take_int("n_samples", 1), part.take_int("kind", 1)
    if kind not in list(Kind):
        raise ValueError(f"{part.name}.kind is {kind}")
    exponent = part.take_array("exponent", n_features)
    if (np.abs(exponent) > _LARGEST_EXPONENT).any() or (exponent % 1).any():
        raise ValueError(f"{part.name}.exponent holds what is no exponent of a float64")
    statistics = Statistics(
        n_samples,
        part.take_array("mean", n_features),
        exponent.astype(np.int32),
        part.take_array("square", n_features),
        **{n: part.take_array(n, n_features, n_features) for n in _MATRICES[Kind(kind)]},
    )
    part.close()
    return statistics


def put_sample(part: Record, sample: RowSample) -> None:
    """Write a sample of rows."""
    rows = torch.from_numpy(sample.rows)
    part.put(n_rows=len(sample), limit=int(sample.limit), dtype=name_of(rows.dtype))
    part.put_tensor("rows", rows)
    part.put_tensor("keys", sample.keys.view(np.int64))


def take_sample(part: Record, n_features: int) -> RowSample:
    """The inverse of `put_sample`."""
    limit = part.take_int("limit", 1)
    n_rows = part.take_int("n_rows")
    if n_rows > limit:
        raise ValueError(f"{part.name} holds {n_rows} rows; at most {limit} were to be kept")
    rows = part.take_tensor("rows", n_rows, n_features, dtype=take_dtype(part, "dtype")).numpy()
    keys = part.take_array("keys", n_rows, dtype=np.int64).view(np.uint64)
    if (keys[1:] < keys[:-1]).any():
        raise ValueError(f"{part.name} is in another order than that of its keys")
    part.close()
    return RowSample(rows, keys, limit)
