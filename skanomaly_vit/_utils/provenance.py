"""Provenance of scores: parameters, backbone, versions."""

from __future__ import annotations

import inspect
import platform
import reprlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from skanomaly_vit._utils.version import __version__

_PACKAGES = ("torch", "timm", "scikit-learn", "numpy", "pillow")

_PLAIN = (str, bytes, bool, int, float, type(None))

_LONGEST = 300  # characters of a value


@dataclass(frozen=True)
class Parameter:
    """A parameter of an estimator, as text.

    Parameters
    ----------
    name : str
        Its name in `get_params`.
    value : str
        Its value.
    default : str
        Its default; empty if it has none.
    """

    name: str
    value: str
    default: str

    @property
    def is_changed(self) -> bool:
        return self.value != self.default


def parameters_of(estimator: Any) -> list[Parameter]:
    """All parameters of `get_params`, those of inner estimators too, sorted by name."""
    values = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
    found = []
    for name, value in sorted(values.items()):
        owner, _, leaf = name.rpartition("__")
        defaults = _defaults(values.get(owner, estimator))
        default = describe(defaults[leaf]) if leaf in defaults else ""
        found.append(Parameter(name, describe(value), default))
    return found


def describe(value: Any) -> str:
    """Describe a value on one line: a plain one as Python writes it, an object by its class."""
    if isinstance(value, _PLAIN):
        text = repr(value)
    elif isinstance(value, list | tuple):
        inner = ", ".join(map(describe, value))
        text = f"[{inner}]" if isinstance(value, list) else f"({inner})"
    elif hasattr(value, "get_params") or hasattr(value, "parameters"):
        text = type(value).__name__  # an estimator or a network: its repr fills pages
    else:
        text = " ".join(reprlib.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, this package, the packages that scores depend on, and `more`."""
    found = {"Python": platform.python_version(), "skanomaly-vit": __version__}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # put on the path without an installer
            found[package] = "unknown"
    return found


def _defaults(estimator: Any) -> dict[str, Any]:
    found = inspect.signature(type(estimator).__init__).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


def printable(text: str) -> str:
    r"""Escape the characters of a text that a reader would not see, or that would mislead.

    Line breaks, control characters, marks that turn the direction of reading, and bytes of file
    names that are not UTF-8 become escapes such as ``\n`` or ``\u202e``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
