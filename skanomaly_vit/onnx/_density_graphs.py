"""ONNX graphs of densities: fitted densities as networks in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from torch import nn

from skanomaly_vit._utils.compat import fitted_samples
from skanomaly_vit.density import (
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    WhitenedKNNDensity,
)
from skanomaly_vit.density._base import StandardizedDensity
from skanomaly_vit.density._neighbors import SMALLEST_RADIUS, NeighborDensity
from skanomaly_vit.density._whitening import axes_of


def density_graph(scorer: Any) -> nn.Module:
    """Network of a scorer from `fit_density`: (batch, n_features) -> (batch,), float64.

    Raises
    ------
    ValueError
        If the class of the density has no graph in `_GRAPHS`.
    """
    if type(scorer) is Pipeline and [type(step) for _, step in scorer.steps[:-1]] == [PCA]:
        return nn.Sequential(_Whitening(scorer[0]), density_graph(scorer[-1]))
    if type(scorer) not in _GRAPHS:
        raise ValueError(
            f"density={type(scorer).__name__} cannot be exported to ONNX, which has no graph "
            "for it; use one of "
            f"{', '.join(cls.__name__ for cls in _GRAPHS)}"
        )
    return nn.Sequential(_Standardized(scorer), _GRAPHS[type(scorer)](scorer))


class _Constants(nn.Module):
    """A module that holds arrays in float64."""

    def _hold(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            values = np.array(array, dtype=np.float64, order="C")  # a copy, lest it be read-only
            self.register_buffer(name, torch.from_numpy(values))


class _Whitening(_Constants):
    """A whitening `PCA`."""

    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, pca: PCA) -> None:
        super().__init__()
        self._hold(mean=pca.mean_, axes=axes_of(pca))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) @ self.axes


class _Standardized(_Constants):
    """Standardization of features, the first step of every density.

    `standardize` also clips; features of float32 never reach its bound.
    """

    location: torch.Tensor
    scale: torch.Tensor

    def __init__(self, density: StandardizedDensity) -> None:
        super().__init__()
        self._hold(location=density.location_, scale=density.scale_)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.location) / self.scale


def _units(density: StandardizedDensity) -> float:
    """Log-density in the units of the features, minus that of standardized features."""
    return -float(np.log(density.scale_).sum())


class _Gaussian(_Constants):
    whitening: torch.Tensor

    def __init__(self, density: GaussianDensity) -> None:
        super().__init__()
        factor = density.cholesky_
        inverse = solve_triangular(factor, np.eye(len(factor)), lower=True)
        self._hold(whitening=inverse.T)
        log_det = 2 * float(np.log(factor.diagonal()).sum())
        self._constant = _units(density) - 0.5 * (len(factor) * math.log(2 * math.pi) + log_det)

    def forward(self, Z: torch.Tensor) -> torch.Tensor:
        return -0.5 * (Z @ self.whitening).square().sum(dim=1) + self._constant


class _Excess(_Constants):
    def __init__(self, density: ExcessDensity) -> None:
        super().__init__()
        # Log-density of features up to the mean.
        flat = density._log_density(np.zeros((1, density.n_features_in_)))[0]
        self._constant = float(flat) + _units(density)
        self._is_exponential = density.tail == "exponential"

    def forward(self, Z: torch.Tensor) -> torch.Tensor:
        excess = Z.clamp(min=0)
        loss = excess if self._is_exponential else 0.5 * excess.square()
        return self._constant - loss.sum(dim=1)


class _Mixture(_Constants):
    whitening: torch.Tensor
    means: torch.Tensor
    constant: torch.Tensor

    def __init__(self, density: GaussianMixtureDensity) -> None:
        super().__init__()
        mixture = density.mixture_
        n_features = mixture.means_.shape[1]
        whitening = _as_matrices(mixture)  # (components, n_features, n_features)
        log_det = np.log(np.diagonal(whitening, axis1=1, axis2=2)).sum(axis=1)
        constant = np.log(mixture.weights_) + log_det - 0.5 * n_features * math.log(2 * math.pi)
        self._hold(
            whitening=whitening,
            means=np.einsum("kd,kde->ke", mixture.means_, whitening)[:, None],
            constant=constant[:, None] + _units(density),
        )

    def forward(self, Z: torch.Tensor) -> torch.Tensor:
        deviation = Z[None] @ self.whitening - self.means  # (components, batch, n_features)
        log_parts = self.constant - 0.5 * deviation.square().sum(dim=2)  # (components, batch)
        highest = log_parts.amax(dim=0, keepdim=True)
        return (log_parts - highest).exp().sum(dim=0).log() + highest[0]


def _as_matrices(mixture: Any) -> np.ndarray:
    """Factors of the precisions, a matrix a component, for every `covariance_type`."""
    factors, n_features = mixture.precisions_cholesky_, mixture.means_.shape[1]
    if mixture.covariance_type == "full":
        return factors
    if mixture.covariance_type == "tied":
        return np.repeat(factors[None], len(mixture.means_), axis=0)
    if mixture.covariance_type == "spherical":
        factors = factors[:, None]
    return np.eye(n_features) * factors[:, None, :]


class _Neighbors(_Constants):
    """Distances to the nearest samples, and the log-density that `_radius` makes of them."""

    samples: torch.Tensor
    squares: torch.Tensor

    def __init__(self, density: NeighborDensity) -> None:
        super().__init__()
        samples = fitted_samples(density.neighbors_)
        n_samples, n_features = samples.shape
        self._k, self._n_features = int(density.neighbors_.n_neighbors), n_features
        self._smallest = SMALLEST_RADIUS * math.sqrt(n_features)
        # Log-density at a radius of 1.
        at_one = density._log_of(np.ones(1), self._k / n_samples)[0]
        self._constant = float(at_one) + _units(density)
        self._hold(samples=samples.T, squares=np.square(samples).sum(axis=1))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        products = points @ self.samples  # (batch, n_samples)
        squares = points.square().sum(dim=1, keepdim=True) - 2 * products + self.squares
        nearest = squares.topk(self._k, dim=1, largest=False).values  # (batch, k), ascending
        radius = self._radius(nearest.clamp(min=0).sqrt())
        return self._constant - self._n_features * radius.clamp(min=self._smallest).log()

    def _radius(self, distances: torch.Tensor) -> torch.Tensor:
        return distances[:, -1]


class _WhitenedNeighbors(_Neighbors):
    whitening: torch.Tensor

    def __init__(self, density: WhitenedKNNDensity) -> None:
        super().__init__(density)
        self._hold(whitening=density.whitening_)

    def forward(self, Z: torch.Tensor) -> torch.Tensor:
        return super().forward(Z @ self.whitening)

    def _radius(self, distances: torch.Tensor) -> torch.Tensor:
        return distances.mean(dim=1)


#: Class of a density -> its network. A new density can be exported once it has a line here.
_GRAPHS: dict[type, Callable[[Any], nn.Module]] = {
    GaussianDensity: _Gaussian,
    GaussianMixtureDensity: _Mixture,
    KNNDensity: _Neighbors,
    WhitenedKNNDensity: _WhitenedNeighbors,
    ExcessDensity: _Excess,
}
