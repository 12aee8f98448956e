"""Warnings that name the line of the user's program, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Packages whose decorators and generators stand between our lines and the caller's.
_BETWEEN = (__name__.partition(".")[0], "sklearn", "torch", "joblib", "contextlib", "functools")


def warn_user(warning: Warning | str, category: type[Warning] | None = None) -> None:
    """Warn at the line that called the package.

    Parameters
    ----------
    warning : Warning or str
    category : type of Warning or None, default=None
        Of a text; a warning has its own.
    """
    # `skip_file_prefixes` of Python 3.12 does the same.
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and _top_module(frame) in _BETWEEN:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(warning, category, stacklevel=depth)


def _top_module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
