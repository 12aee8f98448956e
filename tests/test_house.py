"""The house: what may import what, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skanomaly_vit

PACKAGE = Path(skanomaly_vit.__file__).parent

#: Top to bottom; a room imports only from rooms below it.
ROOMS = [
    "__init__",
    "__main__",
    "cli",
    "_steps",
    "_inputs",
    "_program",
    "_tables",
    "_overlays",
    "_running",
    "_terminal",
    "_machine",
    "report",
    "_report_page",
    "_assessment",
    "_histogram",
    "_pictures",
    "display",
    "_display_blocks",
    "_display_gallery",
    "_display_maps",
    "_display_scores",
    "_display_training",
    "_display_style",
    "evaluation",
    "baselines",
    "_confusion",
    "datasets",
    "maps",
    "_defects",
    "_dior",
    "_idx",
    "_folders",
    "_listing",
    "onnx",
    "_onnx_writing",
    "_graph",
    "_density_graphs",
    "model_selection",
    "_folds",
    "_metrics",
    "_pseudo_anomalies",
    "engines",
    "detector",
    "_calibrated",
    "_frames",
    "persistence",
    "_saved_students",
    "_saved_densities",
    "_saved_statistics",
    "_old_formats",
    "_record",
    "_card",
    "_onnx_file",
    "_provenance",
    "tuned_features",
    "features",
    "distillation",
    "_sharing",
    "_updates",
    "_scorers",
    "_kept",
    "_spool",
    "_whitening",
    "calibration",
    "_recipes",
    "density",
    "_excess",
    "_ledoit_wolf",
    "_neighbors",
    "_standardized",
    "_coreset",
    "_samples",
    "_rows",
    "_statistics",
    "_tuned_base",
    "_gaps",
    "_base",
    "_shards",
    "_remembered",
    "_discrepancy",
    "_objectives",
    "_tuning",
    "_training",
    "_ridge",
    "_passes",
    "_ahead",
    "_patches",
    "_memory",
    "_students",
    "_checkpoints",
    "_progress",
    "_positions",
    "_halving",
    "_teacher",
    "_backbones",
    "_resampling",
    "_images",
    "_forms",
    "_pixels",
    "_engines",
    "_ranks",
    "_tasks",
    "_digests",
    "_decode",
    "_pillow",
    "_unreadable",
    "cache",
    "_labels",
    "_recent",
    "_seeding",
    "_shared",
    "_colours",
    "_compat",
    "_composition",
    "_container",
    "_files",
    "_text",
]


def imported_rooms(room: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    return {module.split(".")[1] for module in modules if module.startswith("skanomaly_vit.")}


def test_every_room_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    above = set(ROOMS[: ROOMS.index(room) + 1])
    assert not imported_rooms(room) & above


def test_timm_is_imported_in_one_room():
    importing = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if re.search(r"^\s*(from|import) timm\b", path.read_text(), re.M)
    }
    assert importing == {"_backbones"}


def test_scikit_learns_private_modules_are_imported_in_one_room():
    private = r"^\s*from sklearn\S*\._|^\s*from sklearn\.base import .*\b_"
    importing = {
        path.stem for path in PACKAGE.glob("*.py") if re.search(private, path.read_text(), re.M)
    }
    assert importing == {"_compat"}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    return done.stdout


def test_importing_the_package_imports_neither_torch_nor_timm():
    code = (
        "import sys, skanomaly_vit; from skanomaly_vit import GaussianDensity\n"
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
