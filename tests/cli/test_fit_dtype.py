"""The floating type of the backbone: an option of a fit, a line of info."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from images import blobs
from PIL import Image
from precision import set_bfloat16

from skanomaly_vit.cli import main


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.fixture
def normal(tmp_path):
    folder = tmp_path / "normal"
    folder.mkdir()
    for index, image in enumerate(blobs(np.random.default_rng(0), 24)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


def fit(normal, model, *options):
    small = ("--image-size", 28, "--n-blocks", 1, "--contamination", 0.2)
    return run("fit", normal, "-o", model, *small, *options)


@pytest.mark.parametrize(
    ("asked", "instructions", "expected"),
    [
        ("bfloat16", True, "bfloat16"),
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        (None, True, "float32"),
    ],
)
def test_fit_takes_a_type_and_info_shows_it(
    normal, tmp_path, monkeypatch, asked, instructions, expected
):
    set_bfloat16(monkeypatch, avx512=instructions)
    model = tmp_path / "parts.skanomaly"
    done = fit(normal, model, *(("--dtype", asked) if asked else ()))
    assert done.exit_code == 0, done.output
    assert json.loads(run("info", model, "--json").stdout)["dtype"] == expected
    assert f"embedded in {expected} (not in the file)" in run("info", model).stdout
    assert run("score", model, normal).exit_code == 0


def test_a_fit_that_will_be_slow_says_so_once(normal, tmp_path, monkeypatch):
    set_bfloat16(monkeypatch)
    done = fit(normal, tmp_path / "m", "--dtype", "bfloat16")
    assert done.exit_code == 0
    assert done.stderr.count("neither AVX512-BF16 nor AMX") == 1


def test_other_types_are_refused(normal, tmp_path):
    done = fit(normal, tmp_path / "m", "--dtype", "float16")
    assert done.exit_code != 0
    assert "'float16' is not one of 'float32', 'bfloat16', 'auto'" in done.stderr


def test_a_file_of_an_older_version_says_nothing_of_its_type():
    old = Path(__file__).parents[1] / "data" / "format-4.skanomaly"
    assert json.loads(run("info", old, "--json").stdout)["dtype"] is None
    assert "embedded (not in the file)" in run("info", old).stdout


@pytest.mark.parametrize("command", ["score", "map", "drift", "inspect"])
def test_a_command_that_will_be_slow_says_so_in_a_sentence(normal, tmp_path, monkeypatch, command):
    set_bfloat16(monkeypatch, avx512=True)
    model = tmp_path / "m"
    assert fit(normal, model, "--dtype", "bfloat16").exit_code == 0
    set_bfloat16(monkeypatch)
    images = normal / "00.png" if command == "inspect" else normal
    done = run(command, model, images, *(("-o", tmp_path / "maps") if command == "map" else ()))
    assert done.exit_code == 0, done.output
    assert done.stderr.count("warning: The backbone works in bfloat16") == 1
    assert ".py:" not in done.stderr
