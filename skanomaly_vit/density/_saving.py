"""Model files of densities, with a PCA in front or without: written from `DENSITIES` alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from skanomaly_vit.density._base import StandardizedDensity
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.density._whitening import make_pca
from skanomaly_vit.persistence._record import StateRecord


def describe_density(density: Any) -> dict[str, Any]:
    """JSON for a density that is the value of a parameter, not fitted.

    Raises
    ------
    ValueError
        If its class is not in `DENSITIES`.
    """
    name, classes = type(density).__name__, _classes()
    if classes.get(name) is not type(density):
        raise ValueError(
            f"density={name} cannot be saved safely: only a pickle holds any estimator, and a "
            "pickle can run code. Use one of "
            f"{', '.join(classes)}, or joblib.dump after reading SECURITY.md."
        )
    record = StateRecord({}, {}, "density")
    record.write_parameters(density)
    return {"class": name, **record.values}


def build_density(record: StateRecord) -> StandardizedDensity:
    """The inverse of `describe_density`."""
    name, classes = record.read("class", str), _classes()
    if name not in classes:
        raise ValueError(f"{record.name} is of the unknown class {name!r}")
    return record.read_parameters(classes[name])


def write_scorer(record: StateRecord, scorer: Any) -> None:
    """Write a fitted density, or the pipeline of PCA and density that `fit_density` makes."""
    density = scorer
    if type(scorer) is Pipeline and [type(step) for _, step in scorer.steps[:-1]] == [PCA]:
        density = scorer[-1]
        _write_pca(record.write_part("pca"), scorer[0])
    record.write(**describe_density(density))
    density._write_state(record)


def read_scorer(record: StateRecord) -> tuple[Any, int]:
    """The scorer that `write_scorer` wrote, and the number of features of its input."""
    pca, n_features = None, None
    if "pca" in record.values:
        part = record.read_part("pca")
        pca = _read_pca(part)
        part.close()
        n_features = pca.n_components_
    density = build_density(record)
    density._read_state(record)
    record.close()
    if pca is None:
        return density, density.n_features_in_
    if density.n_features_in_ != n_features:
        raise ValueError(f"{record.name} takes {density.n_features_in_} features of {n_features}")
    return Pipeline([("pca", pca), ("density", density)]), pca.n_features_in_


def _classes() -> dict[str, type[StandardizedDensity]]:
    return {cls.__name__: cls for cls in DENSITIES.values()}


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
