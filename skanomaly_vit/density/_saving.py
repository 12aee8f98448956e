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
    StateRecord,
    name_of,
    read_dtype,
    read_parameters,
    write_parameters,
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
    record = StateRecord({}, {}, "density")
    write_parameters(record, density)
    return {"class": name, **record.values}


def build_density(record: StateRecord) -> StandardizedDensity:
    """The inverse of `describe_density`."""
    name = record.read("class", str)
    if name not in _CLASSES:
        raise ValueError(f"{record.name} is of the unknown class {name!r}")
    return read_parameters(record, _CLASSES[name])


def write_scorer(record: StateRecord, scorer: Any) -> None:
    """Write a fitted density, or the pipeline of PCA and density that `fit_density` makes."""
    density = scorer
    if type(scorer) is Pipeline and [type(step) for _, step in scorer.steps[:-1]] == [PCA]:
        density = scorer[-1]
        _write_pca(record.write_part("pca"), scorer[0])
    _write_density(record, density)


def read_scorer(record: StateRecord) -> tuple[Any, int]:
    """The inverse of `write_scorer`; with the number of features that it takes."""
    pca, n_features = None, None
    if "pca" in record.values:
        part = record.read_part("pca")
        pca = _read_pca(part)
        part.close()
        n_features = pca.n_components_
    density = _read_density(record)
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


def _write_density(record: StateRecord, density: Any) -> None:
    record.write(**describe_density(density), n_features=density.n_features_in_)
    record.write_tensor("location", density.location_)
    record.write_tensor("scale", density.scale_)
    if isinstance(density, UpdatableDensity):
        write_statistics(record, density._statistics)
    _PARTS[type(density)][0](record, density)


def _read_density(record: StateRecord) -> Any:
    density: Any = build_density(record)
    density.n_features_in_ = n_features = record.read_int("n_features", 1)
    density.location_ = record.read_array("location", n_features)
    density.scale_ = record.read_array("scale", n_features, positive=True)
    if isinstance(density, UpdatableDensity):
        density._statistics = read_statistics(record, n_features)
    _PARTS[type(density)][1](record, density)
    return density


def _write_gaussian(record: StateRecord, density: GaussianDensity) -> None:
    record.write_tensor("cholesky", density.cholesky_)
    record.write(shrinkage=density.shrinkage_)


def _read_gaussian(record: StateRecord, density: Any) -> None:
    density.cholesky_ = record.read_array("cholesky", *[density.n_features_in_] * 2)
    density.shrinkage_ = record.read_number("shrinkage")
    if not (density.cholesky_.diagonal() > 0).all():
        raise ValueError(f"{record.name}.cholesky has a diagonal that is not positive")


def _write_nothing(record: StateRecord, density: ExcessDensity) -> None:
    """Location and scale are all there is."""


def _write_neighbors(record: StateRecord, density: KNNDensity) -> None:
    samples = fitted_samples(density.neighbors_)
    record.write(n_neighbors=int(density.neighbors_.n_neighbors), n_samples=len(samples))
    record.write_tensor("samples", samples)
    if density._pool is not None:
        record.write(pool_seed=int(density._seed))
        write_sample(record.write_part("pool"), density._pool)


def _read_neighbors(record: StateRecord, density: Any) -> None:
    n_neighbors = record.read_int("n_neighbors", 1)
    n_samples = record.read_int("n_samples", n_neighbors)
    samples = record.read_array("samples", n_samples, density.n_features_in_)
    density.neighbors_ = NearestNeighbors(n_neighbors=n_neighbors).fit(samples)
    density._pool, density._seed = None, 0
    if "pool" in record.values:
        density._seed = record.read_int("pool_seed")
        density._pool = read_sample(record.read_part("pool"), density.n_features_in_)


#: What a mixture has learned, beside weights, means and covariances.
_MIXTURE_ARRAYS = ("covariances", "precisions", "precisions_cholesky")


def _write_mixture(record: StateRecord, density: GaussianMixtureDensity) -> None:
    mixture = density.mixture_
    own = density.get_params(deep=False)
    part = record.write_part("mixture")
    # Those that it was fitted with; the density's own may have been set since.
    fitted = {name: getattr(mixture, _MIXTURE_NAMES.get(name, name)) for name in own}
    write_parameters(part, GaussianMixtureDensity(**fitted))
    for name in ("weights", "means", *_MIXTURE_ARRAYS):
        part.write_tensor(name, getattr(mixture, f"{name}_"))
    part.write(
        converged=bool(mixture.converged_),
        n_iter=int(mixture.n_iter_),
        lower_bound=float(mixture.lower_bound_),
        lower_bounds=[float(bound) for bound in mixture.lower_bounds_],
    )


def _read_mixture(record: StateRecord, density: Any) -> None:
    part = record.read_part("mixture")
    fitted = read_parameters(part, GaussianMixtureDensity)
    names = _MIXTURE_NAMES
    params = {names.get(k, k): v for k, v in fitted.get_params(deep=False).items()}
    mixture: Any = GaussianMixture(**params)
    k, d = fitted.n_components, density.n_features_in_
    mixture.n_features_in_ = d
    mixture.weights_ = part.read_array("weights", k)
    mixture.means_ = part.read_array("means", k, d)
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    for name in _MIXTURE_ARRAYS:
        array = part.read_array(name, *shape[fitted.covariance_type])
        setattr(mixture, f"{name}_", array)
    mixture.converged_ = part.read("converged", bool)
    mixture.n_iter_ = part.read_int("n_iter")
    mixture.lower_bound_ = part.read_number("lower_bound")
    mixture.lower_bounds_ = part.read_list("lower_bounds", float)
    part.close()
    density.mixture_ = mixture


_MIXTURE_NAMES = {"regularization": "reg_covar"}

_PARTS: dict[
    type, tuple[Callable[[StateRecord, Any], None], Callable[[StateRecord, Any], None]]
] = {
    GaussianDensity: (_write_gaussian, _read_gaussian),
    GaussianMixtureDensity: (_write_mixture, _read_mixture),
    KNNDensity: (_write_neighbors, _read_neighbors),
    ExcessDensity: (_write_nothing, _write_nothing),
}

_PCA_SPECTRUM = ("explained_variance", "explained_variance_ratio", "singular_values")


def _write_pca(record: StateRecord, pca: PCA) -> None:
    record.write(
        variance=float(pca.n_components),
        n_components=int(pca.n_components_),
        n_features=int(pca.n_features_in_),
        n_samples=int(pca.n_samples_),
        noise_variance=float(pca.noise_variance_),
    )
    for name in ("components", "mean", *_PCA_SPECTRUM):
        record.write_tensor(name, getattr(pca, f"{name}_"))


def _read_pca(record: StateRecord) -> PCA:
    variance = record.read_number("variance", positive=True)
    if variance >= 1:
        raise ValueError(f"{record.name}.variance is {variance}; a share below 1 is possible")
    pca: Any = make_pca(variance)
    pca._fit_svd_solver = pca.svd_solver
    pca.n_components_ = k = record.read_int("n_components", 1)
    pca.n_features_in_ = d = record.read_int("n_features", 1)
    pca.n_samples_ = record.read_int("n_samples", 1)
    pca.noise_variance_ = np.float64(record.read_number("noise_variance"))
    pca.components_ = record.read_array("components", k, d)
    pca.mean_ = record.read_array("mean", d)
    for name in _PCA_SPECTRUM:
        setattr(pca, f"{name}_", record.read_array(name, k, positive=name == _PCA_SPECTRUM[0]))
    return pca


#: Kind -> square matrices that statistics of it hold.
_MATRICES: dict[Kind, tuple[str, ...]] = {
    Kind.VARIANCE: (),
    Kind.COVARIANCE: ("scatter",),
    Kind.SHRINKAGE: ("scatter", "cubes", "fourths"),
}

#: No float64 has a larger one, and statistics none that is lower than this below 0.
_LARGEST_EXPONENT = 2048


def write_statistics(record: StateRecord, statistics: Statistics | None) -> None:
    """Write statistics as a part of `record`; nothing if there are none."""
    if statistics is None:
        return
    part = record.write_part("statistics")
    part.write(n_samples=int(statistics.n_samples), kind=int(statistics.kind))
    part.write_tensor("exponent", statistics.exponent.astype(np.float64))
    for name in ("mean", "square", *_MATRICES[statistics.kind]):
        part.write_tensor(name, getattr(statistics, name))


def read_statistics(record: StateRecord, n_features: int) -> Statistics | None:
    """The inverse of `write_statistics`; files of format 1 hold none."""
    if "statistics" not in record.values:
        return None
    part = record.read_part("statistics")
    n_samples, kind = part.read_int("n_samples", 1), part.read_int("kind", 1)
    if kind not in list(Kind):
        raise ValueError(f"{part.name}.kind is {kind}")
    exponent = part.read_array("exponent", n_features)
    if (np.abs(exponent) > _LARGEST_EXPONENT).any() or (exponent % 1).any():
        raise ValueError(f"{part.name}.exponent holds what is no exponent of a float64")
    statistics = Statistics(
        n_samples,
        part.read_array("mean", n_features),
        exponent.astype(np.int32),
        part.read_array("square", n_features),
        **{n: part.read_array(n, n_features, n_features) for n in _MATRICES[Kind(kind)]},
    )
    part.close()
    return statistics


def write_sample(part: StateRecord, sample: RowSample) -> None:
    """Write a sample of rows."""
    rows = torch.from_numpy(sample.rows)
    part.write(n_rows=len(sample), limit=int(sample.limit), dtype=name_of(rows.dtype))
    part.write_tensor("rows", rows)
    part.write_tensor("keys", sample.keys.view(np.int64))


def read_sample(part: StateRecord, n_features: int) -> RowSample:
    """The inverse of `write_sample`."""
    limit = part.read_int("limit", 1)
    n_rows = part.read_int("n_rows")
    if n_rows > limit:
        raise ValueError(f"{part.name} holds {n_rows} rows; at most {limit} were to be kept")
    rows = part.read_tensor("rows", n_rows, n_features, dtype=read_dtype(part, "dtype")).numpy()
    keys = part.read_array("keys", n_rows, dtype=np.int64).view(np.uint64)
    if (keys[1:] < keys[:-1]).any():
        raise ValueError(f"{part.name} is in another order than that of its keys")
    part.close()
    return RowSample(rows, keys, limit)
