"""Private helpers of scikit-learn, which no other file imports.

scikit-learn may move or rename them between minor releases without notice. One file then needs
one line mended, and the upper bound on the dependency guards the rest.
"""

from typing import Any

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import _safe_indexing
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = [
    "HasMethods",
    "Interval",
    "StrOptions",
    "_fit_context",
    "_safe_indexing",
    "check_matplotlib_support",
    "fitted_samples",
    "validate_parameter_constraints",
]


def fitted_samples(search: Any) -> np.ndarray:
    """Training samples of a `NearestNeighbors`."""
    return search._fit_X
