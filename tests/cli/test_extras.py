"""Without a package of an extra, a command that needs it says in one sentence what to install."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

import pytest

import skanomaly_vit

SETUP = Path(skanomaly_vit.__file__).parents[1] / "setup.cfg"

#: Arguments, what they need, and from which extra. "m" is the model, "i" a folder of images.
COMMANDS = {
    "score to parquet": ("score m i -o o.parquet", "pyarrow", "parquet"),
    "score to excel": ("score m i -o o.xlsx", "openpyxl", "excel"),
    "map": ("map m i -o maps", "matplotlib", "plot"),
    "inspect": ("inspect m i/00.png --picture o.png", "matplotlib", "plot"),
    "drift": ("drift m i --picture o.png", "matplotlib", "plot"),
    "evaluate": ("evaluate m --normal i --anomaly d --pictures o", "matplotlib", "plot"),
    "report": ("report m i -o o.html", "jinja2 markupsafe matplotlib", "report"),
    "export": ("export m -o o.onnx", "onnx onnxscript onnxruntime", "onnx"),
    "serve": ("serve m", "prometheus_client starlette uvicorn watchdog", "serve"),
    "serve of onnx": ("serve m.onnx", "onnx onnxruntime", "onnx"),
    "watch": ("watch m i -o o.csv", "watchdog starlette", "serve"),
}
CASES = [
    pytest.param(arguments, package, extra, id=f"{name} without {package}")
    for name, (arguments, packages, extra) in COMMANDS.items()
    for package in packages.split()
]


class Blocker:
    """A finder that finds the package nowhere."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def block(monkeypatch):
    def block(package, *, by):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        if by == "finder":
            monkeypatch.setattr(sys, "meta_path", [Blocker(package), *sys.meta_path])
        else:
            monkeypatch.setitem(sys.modules, package, None)

    return block


@pytest.mark.parametrize("by", ["finder", "None"])
@pytest.mark.parametrize(("arguments", "package", "extra"), CASES)
def test_a_missing_package_is_one_sentence(
    arguments, package, extra, by, plant, command, block, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").touch()
    places = {"m": plant.model, "i": plant.new, "d": plant.defect}
    block(package, by=by)
    done = command(*(places.get(each, str(each).replace("i/", f"{plant.new}/"))
                     for each in arguments.split()))  # fmt: skip
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert f"needs {package}, not installed here: pip install 'skanomaly-vit[{extra}]'" in line
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}


@pytest.mark.skipif(not SETUP.exists(), reason="the package is not run from a checkout")
def test_extras_that_are_named_exist():
    metadata = configparser.ConfigParser()
    metadata.read(SETUP)
    sources = "".join(path.read_text() for path in SETUP.parent.glob("skanomaly_vit/**/*.py"))
    named = set(re.findall(r"skanomaly-vit\[(\w[\w-]*)\]", sources)) | {
        extra for _, _, extra in COMMANDS.values()
    }
    assert named <= set(metadata["options.extras_require"])
