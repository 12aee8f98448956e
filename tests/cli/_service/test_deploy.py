"""The image of `deploy/`: its file is well-formed, and its commands do what they should here."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from serving import png

import skanomaly_vit
from skanomaly_vit.cli import main

ROOT = Path(skanomaly_vit.__file__).parents[1]
DEPLOY = ROOT / "deploy"

pytestmark = pytest.mark.skipif(
    not DEPLOY.exists(), reason="the package is not run from a checkout"
)


def instructions():
    """Stage, keyword and arguments of each instruction of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    stage, found = "", []
    for line in filter(None, lines):
        keyword, _, rest = line.partition(" ")
        assert keyword in {
            "FROM", "WORKDIR", "COPY", "RUN", "ARG", "ENV", "USER", "EXPOSE", "STOPSIGNAL",
            "HEALTHCHECK", "ENTRYPOINT", "CMD",
        }  # fmt: skip
        if keyword == "FROM":
            stage = rest.split(" AS ")[1]
        found.append((stage, keyword, rest))
    return found


def requirements():
    lines = (DEPLOY / "onnx.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def of(stage, keyword):
    return [rest for name, found, rest in instructions() if (name, found) == (stage, keyword)]


def test_stages_build_on_earlier_ones():
    known = set()
    for stage, keyword, rest in instructions():
        if keyword == "FROM":
            origin = rest.split()[0]
            assert origin in known or re.fullmatch(r"python:3\.\d+-slim", origin)
            known.add(stage)
    assert instructions()[-1][0] == "onnx"


def test_files_that_are_copied_exist():
    stages = {stage for stage, *_ in instructions()}
    for stage, keyword, rest in instructions():
        if keyword == "COPY":
            *sources, _ = [part for part in shlex.split(rest) if not part.startswith("--")]
            if origin := re.search(r"--from=(\S+)", rest):
                assert origin[1] in stages
                continue
            assert stage == "source"
            assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_is_not_root():
    assert of("base", "USER") == ["10001:10001"]
    for stage in ("torch", "onnx"):
        assert of(stage, "USER") == of(stage, "RUN") == []
        assert of(stage, "FROM") == [f"base AS {stage}"]


def test_commands_of_the_image_are_commands():
    (entry,) = of("base", "ENTRYPOINT")
    assert json.loads(entry) == ["/venv/bin/skanomaly"]
    for stage in ("torch", "onnx"):
        name, model, *options = json.loads(of(stage, "CMD")[0])
        command = main.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(options[::2]) <= known
        assert model.startswith("/model/")


def test_requirements_have_the_bounds_of_the_package():
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    extras = metadata["options.extras_require"]
    text = "\n".join([metadata["options"]["install_requires"], extras["onnx"], extras["serve"]])
    declared = {r.name: r for r in map(Requirement, filter(None, text.splitlines()))}
    assert all(declared[each.name] == each for each in requirements())
    assert {r.name for r in map(Requirement, extras["serve"].split("\n")[1:])} <= {
        each.name for each in requirements()
    }


def closure():
    """Packages that the requirements install, and what they need."""
    names, todo = set(), [each.name for each in requirements()]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in names:
            continue
        names.add(name)
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # for another system or Python
            continue
        for each in map(Requirement, needed):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                todo.append(each.name)
    return names


#: Runs a command where only some packages are installed, on a file system that is read-only.
AS_IN_THE_IMAGE = """
import os, sys

forbidden = set(sys.argv.pop(1).split(","))

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.dont_write_bytecode = True

def guard(event, args):
    changes = {"os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate"}
    writes = event == "open" and isinstance(args[0], str) and args[0] != os.devnull and (
        args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if event in changes or writes:
        raise OSError(30, f"Read-only file system: {args[0]}")

from skanomaly_vit.cli import main
sys.addaudithook(guard)
main(sys.argv[1:])
"""


def test_an_onnx_file_is_served_as_in_the_image(line):
    allowed = closure()
    forbidden = {
        package
        for package, names in packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & allowed
    } - {"skanomaly_vit"}
    assert forbidden >= {"torch", "sklearn", "scipy", "matplotlib"}
    (check,) = [json.loads(rest[rest.index("[") :]) for rest in of("base", "HEALTHCHECK")]
    process = subprocess.Popen(
        [sys.executable, "-c", AS_IN_THE_IMAGE, ",".join(sorted(forbidden)),
         "serve", str(line.path), "--port", "0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        said = process.stderr.readline()
        address = re.search(r"http://[\d.:]+", said)
        assert address, said + process.stderr.read()
        asked = check[2].replace("http://127.0.0.1:8765", address[0])
        assert asked != check[2]
        healthy = subprocess.run([sys.executable, "-c", asked], check=False).returncode
        headers = {"content-type": "image/png"}
        answers = [
            httpx.post(f"{address[0]}/{name}", content=png(line.odd[0]), headers=headers)
            for name in ("score", "map")
        ]
        process.terminate()
        rest = process.stderr.read()
    assert healthy == 0
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (process.returncode, "Traceback" in rest) == (0, False)
    # Without a server, the check fails.
    done = subprocess.run([sys.executable, "-c", asked], check=False, stderr=subprocess.DEVNULL)
    assert done.returncode == 1
