"""The house: the map of the package, which way imports go, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import skanomaly_vit

PACKAGE = Path(skanomaly_vit.__file__).parent

#: The map. Level, name, and what it is about; everything imports from lower levels only.
PLACES = [
    (1, "exceptions", "every warning and error that users meet"),
    (2, "_utils", "helpers that know nothing of images or networks"),
    (3, "calibration", "p-values, thresholds and drift, from scores alone"),
    (3, "_images", "images of any form: opened, checked, decoded, prepared"),
    (3, "_caching", "kept between fits: DiskCache, and what `memory` stores in it"),
    (3, "distributed", "who does the work: joblib's workers, the ranks of torchrun"),
    (3, "persistence", "model files: a checked container, records, cards"),
    (4, "monitoring", "a line over time, from scores alone: changes, rates, false discoveries"),
    (4, "_backbone", "the frozen teacher: passes over it, and the students' errors beside it"),
    (4, "density", "a density scorer a file, and how each is saved"),
    (4, "display", "seven pictures, in scikit-learn's way"),
    (4, "datasets", "a data set on the disk a file, and pasted defects"),
    (4, "model_selection", "folds and scorers for a search"),
    (5, "features", "images to vectors: frozen, or tuned as PANDA and MSAD do"),
    (5, "distillation", "students: ridge and block, trained and saved"),
    (5, "report", "one HTML file"),
    (6, "detector", "TransformalyDetector: both spaces, densities, fusion, threshold"),
    (
        6,
        "evaluation",
        "fitted detectors, AUROC class by class, baselines, maps",
    ),
    (7, "onnx", "one graph of a fitted detector, and its runtime"),
    (8, "cli", "the command `skanomaly`, and the service and hot folder that it runs"),
]
LEVELS = {name: level for level, name, _ in PLACES}
MAX_ENTRIES = 24
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def place_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def module_of(file: Path) -> str:
    return ".".join(["skanomaly_vit", *file.with_suffix("").parts]).removesuffix(".__init__")


def imported_modules(file: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    tree = ast.parse((PACKAGE / file).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    known = {module_of(each) for each in FILES}
    return (found & known) - {"skanomaly_vit"}


def test_the_map_names_everything_at_the_top():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= MAX_ENTRIES
    named = {name if (PACKAGE / name).is_dir() else f"{name}.py" for name in LEVELS}
    assert entries == named | {"__init__.py", "__main__.py", "py.typed", "weights"}


def test_contributors_read_the_same_map():
    page = PACKAGE.parent / "CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("the package is not run from a checkout")
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| (.*) \|$", page.read_text(), re.M)
    assert [(int(level), name, about) for level, name, about in rows] == PLACES


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down_only(file):
    place = place_of(file)
    level = LEVELS.get(place, max(LEVELS.values()) + 1)
    others = {module.split(".")[1] for module in imported_modules(file)} - {place}
    assert {other for other in others if LEVELS[other] >= level} == set()


@pytest.mark.parametrize("place", LEVELS)
def test_no_folder_holds_a_circle(place):
    inside = defaultdict(set)
    for file in FILES:
        if place_of(file) == place and file.name != "__init__.py":
            inside[module_of(file)] = imported_modules(file) - {f"skanomaly_vit.{place}"}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("place", [name for name in LEVELS if name.startswith("_")])
def test_private_folders_define_nothing(place):
    """So that whoever imports one of their files imports that file alone."""
    (statement,) = ast.parse((PACKAGE / place / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)


@pytest.mark.parametrize(
    "place", [name for name in LEVELS if not name.startswith("_") and (PACKAGE / name).is_dir()]
)
def test_public_folders_export_names_and_nothing_else(place):
    body = ast.parse((PACKAGE / place / "__init__.py").read_text()).body
    assert {type(each) for each in body} == {ast.Expr, ast.ImportFrom, ast.Assign}
    names = {
        alias.name for each in body if isinstance(each, ast.ImportFrom) for alias in each.names
    }
    assert names == set(ast.literal_eval(body[-1].value))


def files_with(pattern: str) -> set[str]:
    return {str(f) for f in FILES if re.search(pattern, (PACKAGE / f).read_text(), re.M)}


def test_timm_is_imported_in_one_file():
    assert files_with(r"^\s*(from|import) timm\b") == {"_backbone/loading.py"}


@pytest.mark.parametrize(
    "what",
    [
        r"(from|import) sklearn\S*\._",  # private modules
        r"from sklearn\S* import (.*\W)?_",  # private names
        r"(from|import) sklearn\.callback\b",  # new in 1.9
        r".*\b(sklearn\.__version__|parse_version)\b",
        r".*\._fit_X\b",
    ],
)
def test_one_file_knows_what_scikit_learn_hides_or_has_not_always_had(what):
    assert files_with(rf"^\s*{what}") <= {"_utils/compat.py"}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "light",
    ["from skanomaly_vit import GaussianDensity", "import skanomaly_vit.persistence",
     "import skanomaly_vit.onnx", "import skanomaly_vit.calibration, skanomaly_vit.exceptions",
     "import skanomaly_vit.display", "import skanomaly_vit.datasets",
     "import skanomaly_vit.monitoring"],
)  # fmt: skip
def test_light_imports_import_neither_torch_nor_timm(light):
    code = (
        f"import sys; {light}\n"
        "late = ('torch', 'timm', 'torchvision', 'matplotlib', 'jinja2')\n"
        "print([m for m in late if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_importing_the_package_imports_nothing_beyond_scikit_learn():
    code = (
        "import sys, sklearn; before = set(sys.modules); import skanomaly_vit\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    assert run(code).strip() == "['skanomaly_vit']"


def test_public_names_are_there_and_others_are_not():
    for name in skanomaly_vit.__all__:
        assert getattr(skanomaly_vit, name) is not None
    assert dir(skanomaly_vit) == sorted(skanomaly_vit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Transformer'"):
        skanomaly_vit.Transformer  # noqa: B018
