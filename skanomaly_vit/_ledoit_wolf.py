"""How far a covariance is pulled to a multiple of the identity, from statistics alone."""

from __future__ import annotations

import numpy as np

from skanomaly_vit._statistics import FloatArray, Statistics

#: Mean square by which a covariance of standardised features differs from the identity where it
#: differs by rounding. That of samples differs by about 1 / n_samples.
_ROUNDING = 1e-16


def shrinkage_of(statistics: Statistics, scale: FloatArray, covariance: FloatArray) -> float:
    """The amount of shrinkage that Ledoit and Wolf estimate for standardised features.

    What `sklearn.covariance.ledoit_wolf_shrinkage` gives for all rows (O. Ledoit and M. Wolf,
    Journal of Multivariate Analysis 88(2), 2004).

    Parameters
    ----------
    statistics : Statistics
        Of the kind `Kind.SHRINKAGE`, unless the covariance is the identity.
    scale : ndarray of shape (n_features,)
        By which features are divided.
    covariance : ndarray of shape (n_features, n_features)
        Of the features divided by `scale`.
    """
    # Constant features have no correlations to shrink and would lower the mean variance, which
    # the target is made of. Standardised variances are either 0 or 1.
    varying = covariance.diagonal() > 0.5
    n_features = int(varying.sum())
    if n_features < 2:
        return 0.0
    within = covariance[np.ix_(varying, varying)]
    mean_variance = within.trace() / n_features
    target = mean_variance * np.eye(n_features)
    distance = np.square(within - target).sum() / n_features
    if distance <= _ROUNDING:
        return 1.0  # it is its own target, as behind a whitening PCA
    noise = statistics.mean_fourth_power(scale, varying) - np.square(within).sum()
    # Rounding may bring it below zero.
    noise = max(noise / (n_features * statistics.n_samples), 0.0)
    return float(min(noise, distance) / distance)
