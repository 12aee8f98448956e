"""Checks of what is fed in, and of states that are read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def checked_vector(values: Any, name: str) -> np.ndarray:
    """Numbers of shape (m,), float64, none of them NaN."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} have shape {vector.shape}; pass one number for each image, (m,)")
    wrong = np.flatnonzero(np.isnan(vector))
    if len(wrong):
        raise ValueError(
            f"{name} hold NaN for image {wrong[0]}; leave out images that could not be read"
        )
    return vector


def checked_p_values(values: Any) -> np.ndarray:
    vector = checked_vector(values, "p_values")
    wrong = np.flatnonzero((vector < 0) | (vector > 1))
    if len(wrong):
        raise ValueError(
            f"p_values hold {vector[wrong[0]]:g} for image {wrong[0]}, which is not in [0, 1]; "
            "scores are no p-values"
        )
    return vector


@contextmanager
def state_of(kind: str, state: Any) -> Iterator[None]:
    """Say what a state should have been if it cannot be read."""
    if not isinstance(state, dict) or state.get("kind") != kind or state.get("format") != 1:
        raise ValueError(f"this is no state of {kind}; pass what to_dict() of one returned")
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the state of {kind} is damaged ({type(error).__name__}: {error}); pass what "
            "to_dict() returned, whole"
        ) from error
