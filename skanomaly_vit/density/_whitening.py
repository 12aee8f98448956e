"""Whitening PCA from statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils.extmath import svd_flip

from skanomaly_vit.density._statistics import FloatArray, Statistics


def make_pca(variance: float) -> PCA:
    """A whitening PCA, not fitted, that keeps this share of the variance."""
    return PCA(variance, whiten=True, svd_solver="full")


def whiten(statistics: Statistics, variance: float) -> PCA:
    """A fitted PCA, equal to `make_pca(variance).fit` on all rows.

    Parameters
    ----------
    statistics : Statistics
        Of the kind `Kind.COVARIANCE` at least.
    variance : float
        Share in (0, 1) of the variance to keep.
    """
    n, d = statistics.n_samples, len(statistics.mean)
    variances, axes = np.linalg.eigh(statistics.covariance() * (n / (n - 1)))
    rank = min(n, d)
    spectrum = np.maximum(variances[::-1][:rank], 0.0)
    _, components = svd_flip(None, axes[:, ::-1][:, :rank].T, u_based_decision=False)
    shares = spectrum / spectrum.sum()
    k = min(int(np.searchsorted(np.cumsum(shares), variance, side="right")) + 1, rank)
    pca: Any = make_pca(variance)
    pca._fit_svd_solver = pca.svd_solver
    pca.mean_, pca.n_samples_, pca.n_features_in_ = statistics.mean.copy(), n, d
    pca.n_components_, pca.components_ = k, np.array(components[:k], order="C")
    pca.explained_variance_ = spectrum[:k].copy()
    pca.explained_variance_ratio_ = shares[:k].copy()
    pca.singular_values_ = np.sqrt(spectrum[:k] * (n - 1))
    pca.noise_variance_ = np.float64(spectrum[k:].mean()) if k < rank else np.float64(0.0)
    return pca


def axes_of(pca: PCA) -> FloatArray:
    """The matrix (n_features, n_axes) that `pca.transform` applies to centered rows."""
    return pca.components_.T / np.sqrt(pca.explained_variance_)
