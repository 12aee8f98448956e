"""Docstrings of all public names: numpydoc's rules, those in pyproject.toml left out."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from numpydoc.validate import validate

import skanomaly_vit

PACKAGE = Path(skanomaly_vit.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"

pytestmark = pytest.mark.skipif(
    not PYPROJECT.exists(), reason="the package is not run from a checkout"
)


def public_modules() -> list[str]:
    folders = [path.parent.name for path in PACKAGE.glob("[a-z]*/__init__.py")]
    files = [path.stem for path in PACKAGE.glob("[a-z]*.py")]
    return sorted(f"skanomaly_vit.{name}" for name in {*folders, *files} - {"cli", "weights"})


def public_names() -> list[str]:
    """Of each public module what it exports, and of classes their own public methods."""
    names = set()
    for module in map(import_module, public_modules()):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            names.add(f"{module.__name__}.{name}")
            methods = {
                method
                for each in (thing.__mro__ if inspect.isclass(thing) else ())
                if each.__module__.startswith("skanomaly_vit")
                for method, value in vars(each).items()
                if inspect.isroutine(inspect.unwrap(getattr(value, "__func__", value)))
            }
            names |= {f"{module.__name__}.{name}.{m}" for m in methods if not m.startswith("_")}
    return sorted(names)


@pytest.mark.parametrize("name", public_names())
def test_docstring(name):
    rules = tomllib.loads(PYPROJECT.read_text())["tool"]["numpydoc_validation"]
    left_out = set(rules["checks"]) - {"all"}
    errors = validate(name)["errors"]
    assert [error for error in errors if error[0] not in left_out] == []
