"""Few rows that lie near all of many: the greedy solution of the k-center problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.random_projection import GaussianRandomProjection

from skanomaly_vit._statistics import FloatArray

#: Dimensions beyond which distances are compared in a random projection to so many: they keep to
#: within some 10 %, and cost a fraction.
N_PROJECTED = 128


def spread_out(rows: FloatArray, n_chosen: int, seed: int) -> NDArray[np.intp]:
    """Choose rows, each as far as possible from those chosen before it.

    The largest distance from any row to its nearest chosen one is at most twice the smallest that
    so many rows can reach (T. F. Gonzalez, Theoretical Computer Science 38, 1985), but for what the
    projection changes. It is how PatchCore (Roth et al., CVPR 2022, section 3.2) fills its memory.

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
        nearest[last] = -1  # nor chosen again where it has equals
        chosen[i] = nearest.argmax()
    return chosen
