"""Dependencies: setup.cfg declares all of them, with bounds."""

from __future__ import annotations

import ast
import configparser
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import skanomaly_vit

PACKAGE = Path(skanomaly_vit.__file__).parent
SETUP = PACKAGE.parent / "setup.cfg"

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="the package is not run from a checkout")


@pytest.fixture(scope="module")
def declared():
    """Requirement lists: "" for those of the package, and of each extra."""
    metadata = configparser.ConfigParser()
    metadata.optionxform = str
    metadata.read(SETUP)
    extras = metadata["options.extras_require"]
    lists = {"": metadata["options"]["install_requires"], **{name: extras[name] for name in extras}}
    return {
        name: [Requirement(line) for line in text.splitlines() if line.strip()]
        for name, text in lists.items()
    }


def imported_packages():
    """Top-level packages that a module of ours imports, wherever in it."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"skanomaly_vit"}


def test_every_requirement_has_a_lower_and_an_upper_bound(declared):
    unbounded = {
        requirement.name
        for requirements in declared.values()
        for requirement in requirements
        if {clause.operator for clause in requirement.specifier} != {">=", "<"}
    }
    assert unbounded == {"scikit-learn"}


def test_an_extra_lists_each_package_once(declared):
    names = {extra: [requirement.name for requirement in each] for extra, each in declared.items()}
    assert {extra: each for extra, each in names.items() if len(each) != len(set(each))} == {}


def test_scikit_learn_has_no_upper_bound(declared):
    """It has a minor release each half-year, and who waits for ours could take neither."""
    (requirement,) = [each for each in declared[""] if each.name == "scikit-learn"]
    assert str(requirement.specifier) == ">=1.6"


def test_every_package_that_is_imported_is_declared(declared):
    names = {
        canonicalize_name(requirement.name)
        for requirements in declared.values()
        for requirement in requirements
    }
    distributions = packages_distributions()
    undeclared = {
        package
        for package in imported_packages()
        if not {canonicalize_name(name) for name in distributions.get(package, [package])} & names
    }
    assert undeclared == set()


def test_every_requirement_of_the_package_is_imported(declared):
    distributions = packages_distributions()
    imported = {
        canonicalize_name(name)
        for package in imported_packages()
        for name in distributions.get(package, [package])
    }
    # timm needs torchvision; setup.cfg names it, so that pip takes one that fits torch.
    unused = {canonicalize_name(r.name) for r in declared[""]} - imported - {"torchvision"}
    assert unused == set()


def test_what_is_installed_is_within_the_bounds(declared):
    from importlib.metadata import version

    outside = [
        str(requirement)
        for requirement in declared[""]
        if not requirement.specifier.contains(version(requirement.name), prereleases=True)
    ]
    assert outside == []
