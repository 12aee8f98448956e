"""Greedy coresets: few rows that reach everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.random_projection import GaussianRandomProjection

from skanomaly_vit.density._statistics import FloatArray

#: Rows of more dimensions are projected to this number at random. Distances change by some 10 %
#: and cost a fraction.
N_PROJECTED = 128


def greedy_k_center(rows: FloatArray, n_chosen: int, seed: int) -> NDArray[np.intp]:
    """Choose rows, each as far as possible from those chosen before it.

    Without a projection, the largest distance from any row to its nearest chosen one is at most
    twice the optimum for `n_chosen` rows (T. F. Gonzalez, Theoretical Computer Science 38, 1985).
    PatchCore (Roth et al., CVPR 2022, section 3.2) fills its memory in the same way.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_features)
        The first one is chosen first.
    n_chosen : int
        At most n_rows.
    seed : int
        Of the projection.

    Returns
    -------
    chosen : ndarray of int of shape (n_chosen,)
        Positions, all different.
    """
    if rows.shape[1] > N_PROJECTED:
        projection = GaussianRandomProjection(N_PROJECTED, random_state=seed)
        rows = projection.fit_transform(rows)
    points = rows.astype(np.float32)  # distances are only compared
    squares = np.einsum("ij,ij->i", points, points)
    chosen = np.zeros(n_chosen, dtype=np.intp)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for i in range(1, n_chosen):
        last = chosen[i - 1]
        distances = squares - 2 * (points @ points[last]) + squares[last]
        np.minimum(nearest, np.maximum(distances, 0), out=nearest)
        nearest[last] = -1  # never chosen again, even if other rows equal it
        chosen[i] = nearest.argmax()
    return chosen
