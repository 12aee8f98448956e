"""Missing values of any library, told without importing it."""

from __future__ import annotations

from typing import Any


def is_missing(value: Any) -> bool:
    """Tell whether a value is None, NaN, NaT or the NA of pandas."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # the NA of pandas is neither equal to itself nor not
        return True
    except (RuntimeError, ValueError):  # arrays and tensors compare by element
        return False
