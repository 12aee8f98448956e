"""What scikit-learn has made private, or only has in some versions; no other file imports it.

scikit-learn may move or rename private helpers between minor releases without notice. This file
then needs a line mended. It is also the only one that asks what the installed version has.
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

try:  # scikit-learn 1.9 and later
    from sklearn.callback import CallbackContext, CallbackSupportMixin, with_callbacks
except ModuleNotFoundError:
    from skanomaly_vit._utils.older_callbacks import (
        CallbackContext,
        CallbackSupportMixin,
        with_callbacks,
    )

__all__ = [
    "CallbackContext",
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "StrOptions",
    "_fit_context",
    "_safe_indexing",
    "check_matplotlib_support",
    "fitted_samples",
    "lower_bounds",
    "validate_parameter_constraints",
    "with_callbacks",
]


def fitted_samples(search: Any) -> np.ndarray:
    """Training samples of a `NearestNeighbors`."""
    return search._fit_X


def lower_bounds(mixture: Any) -> list[float]:
    """Lower bounds of a fitted `GaussianMixture`, of each iteration; older versions keep none."""
    return [float(bound) for bound in getattr(mixture, "lower_bounds_", ())]
