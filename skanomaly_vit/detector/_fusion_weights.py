"""Weights of feature spaces, learned from the few defects that are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.optimize import minimize

from skanomaly_vit._backbone.discrepancy import Embedded
from skanomaly_vit.detector._fusion import score_images
from skanomaly_vit.detector._space_density import score_left_out

#: Strength of the pull towards equal weights, in defects.
PRIOR = 2.0

#: A score counts no lower than this, in standard deviations: a gross defect teaches no more than a
#: clear one.
_LOWEST = -20.0

#: No space is left out entirely: a kind of defect that is not known may show in it alone.
_LEAST = 0.05


def left_out_scores(
    densities: Mapping[str, object],
    fusion: Mapping[str, tuple[float, float]],
    learned: Iterable[Embedded],
) -> dict[str, np.ndarray]:
    """Scores of training images in each space, each left out of its density."""
    scores, _ = score_images(densities, fusion, learned, score_left_out)
    return scores


def learn_weights(
    normal: Mapping[str, np.ndarray], defects: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Factors of the scores of spaces that tell defects from normal images best.

    The minimum of a convex function: the logistic loss of the weighted sum on both sides, and the
    squared distance from factors of 1, which fades as defects grow in number.

    Parameters
    ----------
    normal, defects : mapping of str to ndarray of shape (n_images,)
        Standardized scores in each space, higher = more normal.

    Returns
    -------
    factors : dict of str to float
        Above 0, of mean 1; all 1 without defects.
    """
    spaces = list(normal)
    n_defects = len(defects[spaces[0]])
    if n_defects == 0 or len(spaces) < 2:
        return dict.fromkeys(spaces, 1.0)
    sides = [
        (side, np.maximum(np.stack([scores[space] for space in spaces], axis=1), _LOWEST))
        for side, scores in ((-1.0, normal), (1.0, defects))
    ]  # [n, n_spaces] each
    pull = PRIOR / n_defects

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        factors, bias = parameters[:-1], parameters[-1]
        loss = pull * float(np.square(factors - 1).sum())
        slope = np.append(2 * pull * (factors - 1), 0.0)
        for side, scores in sides:
            margins = side * (-scores @ factors - bias)  # [n]; above 0 is right
            loss += float(np.logaddexp(0, -margins).mean())
            pushes = -side / (1 + np.exp(np.minimum(margins, 500.0))) / len(margins)  # [n]
            slope += np.append(-scores.T @ pushes, -pushes.sum())
        return loss, slope

    bounds = [(_LEAST, None)] * len(spaces) + [(None, None)]
    start = np.append(np.ones(len(spaces)), 0.0)
    factors = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    return dict(zip(spaces, (factors / factors.mean()).tolist(), strict=True))
