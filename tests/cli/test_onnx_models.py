"""ONNX files on the command line: `score`, `evaluate` and `info` without torch, and `export`."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from images import blobs
from PIL import Image
from sklearn.base import clone

from skanomaly_vit.exceptions import CalibrationWarning
from skanomaly_vit.onnx import OnnxDetector, export_onnx
from skanomaly_vit.onnx import _recalibrating as recalibrating

WITHOUT_TORCH = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
sys.stderr.isatty = lambda: True
from skanomaly_vit.cli import main

main(sys.argv[1:])
"""

LOADING = """
import sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is imported", file=sys.stderr)
            raise ImportError(name)

sys.meta_path.insert(0, Torch())
sys.stderr.isatty = lambda: True
from skanomaly_vit.cli import main

main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def graph(plant):
    return export_onnx(plant.detector, plant.root / "parts.onnx")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    folder = tmp_path_factory.mktemp("more")
    for index, image in enumerate(blobs(np.random.default_rng(9), 12)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def run(program, *args):
    command = [sys.executable, "-W", "error", "-c", program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def labelled(plant):
    return "--normal", plant.new, "--anomaly", plant.defect


# Without torch


def test_rows_of_a_graph_are_those_of_its_model(plant, graph, command):
    done = run(WITHOUT_TORCH, "score", graph, plant.new, plant.defect)
    assert done.returncode == 0, done.stderr
    found, expected = rows(done.stdout), rows(command("score", plant.model, plant.new,
                                                      plant.defect).stdout)  # fmt: skip
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for name in ("score", "decision"):  # ONNX Runtime and torch round otherwise
        values, wanted = ([float(row[name]) for row in each] for each in (found, expected))
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-3)
    for name in ("flag", "p_value"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def test_an_evaluation_of_a_graph_is_that_of_its_model(plant, graph, command):
    done = run(WITHOUT_TORCH, "evaluate", graph, *labelled(plant), "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = json.loads(
        command("evaluate", plant.model, *labelled(plant), "--format", "json").stdout
    )
    assert found.keys() == expected.keys()
    for name in ("auroc", "n_found", "n_false_alarms", "threshold_rate"):
        assert found[name] == pytest.approx(expected[name])
    for name in ("misses", "alarms"):
        assert [row["p_value"] for row in found[name]] == pytest.approx(
            [row["p_value"] for row in expected[name]]
        )
    assert "could not be checked" in found["remarks"][0]


@pytest.mark.parametrize("kind", ["model", "graph"])
def test_an_evaluation_without_any_miss(plant, graph, command, tmp_path, kind):
    noise = "--normal", plant.new, "--anomaly", plant.defect / "noise"
    model = plant.model if kind == "model" else graph
    done = command("evaluate", model, *noise, "--worst", 0, "--format", "json")
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    assert (described["misses"], described["alarms"]) == ([], [])


def test_pictures_of_an_evaluation_of_a_graph(plant, graph, command, tmp_path):
    pytest.importorskip("matplotlib")
    done = command("evaluate", graph, *labelled(plant), "--pictures", tmp_path / "pictures")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "pictures/scores.png").exists()
    assert (tmp_path / "pictures/misses.png").exists()


def test_info_of_a_graph(plant, graph):
    done = run(WITHOUT_TORCH, "info", graph, "--json")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["threshold"] == plant.detector.offset_
    assert described["false_alarm_rate"] == plant.detector.contamination
    assert described["quantization"] is None
    text = run(WITHOUT_TORCH, "info", graph).stdout
    assert "it computes in float32" in text
    assert "20 % of normal images" in text


# Framed images

ROI = np.arange(32) < np.full((32, 1), 26)


@pytest.fixture(scope="module")
def framed(plant):
    """A model with a region and tiles, and its graph."""
    detector = clone(plant.detector).set_params(roi=ROI, tiles=(2, 2))
    detector.fit(sorted(map(str, plant.good.iterdir())))
    model = plant.root / "framed.skanomaly"
    detector.save(model)
    return model, export_onnx(detector, plant.root / "framed.onnx")


def test_rows_of_a_graph_that_frames_are_those_of_its_model(plant, framed, command):
    model, graph = framed
    done = run(WITHOUT_TORCH, "score", graph, plant.new, plant.defect)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    expected = rows(command("score", model, plant.new, plant.defect).stdout)
    scores, wanted = ([float(row["score"]) for row in each] for each in (found, expected))
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4)
    for name in ("path", "flag", "p_value"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def test_an_evaluation_of_a_graph_that_frames_is_that_of_its_model(plant, framed, command):
    model, graph = framed
    done = run(WITHOUT_TORCH, "evaluate", graph, *labelled(plant), "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = json.loads(command("evaluate", model, *labelled(plant), "--format", "json").stdout)
    for name in ("auroc", "n_found", "n_false_alarms"):
        assert found[name] == pytest.approx(expected[name])


def test_info_says_how_a_graph_frames(framed, graph, command):
    model, framing = framed
    described = json.loads(run(WITHOUT_TORCH, "info", framing, "--json").stdout)
    assert (described["tiles"], described["keep_aspect"]) == ([2, 2], False)
    assert described["region_share"] == ROI.mean()
    assert "framing" not in described  # nor all the bits of the region
    said = command("info", framing).stdout
    for line in ("region:         81.2% of the pixels count", "framing:        tiles=[2, 2]"):
        assert line in said
    assert "region:         81.2% of the pixels count" in command("info", model).stdout
    said = command("info", graph).stdout
    for line in ("region:         all pixels count", "framing:        whole images"):
        assert line in said


def test_info_of_a_graph_tells_the_rate_that_its_images_allow(plant, tmp_path, command):
    few = clone(plant.detector).set_params(contamination=0.01)
    with pytest.warns(CalibrationWarning):
        few.fit(sorted(map(str, plant.good.iterdir())))
    export_onnx(few, tmp_path / "few.onnx")
    text = command("info", tmp_path / "few.onnx").stdout
    assert "4.76 % of normal images" in text  # 1 / (20 + 1)
    none = clone(plant.detector).set_params(validation_fraction=0)
    export_onnx(none.fit(sorted(map(str, plant.good.iterdir()))), tmp_path / "none.onnx")
    text = command("info", tmp_path / "none.onnx").stdout
    assert "20 % of the training images; of new ones, more" in text
    assert "no held-out images" in text


# The first line


@pytest.mark.parametrize("name", ["score", "map"])
def test_a_line_says_what_is_loaded_before_torch_is(plant, tmp_path, name):
    options = ["-o", tmp_path / "maps", "--format", "npy"] if name == "map" else []
    done = run(LOADING, name, plant.model, plant.new, *options)
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[:2] == [f"Loading {plant.model} ...", "torch is imported"]


@pytest.mark.parametrize("name", ["fit", "audit"])
def test_a_line_says_how_many_images_before_torch_is_imported(plant, more, name):
    options = ["-o", plant.root / "new.skanomaly"] if name == "fit" else []
    done = run(LOADING, name, more, *options)
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[:2] == ["Loading the backbone, for 12 images ...", "torch is imported"]


def test_a_line_says_that_a_graph_is_loaded(plant, graph):
    assert run(WITHOUT_TORCH, "score", graph, plant.new).stderr.startswith(f"Loading {graph} ...")


def test_no_line_where_there_is_no_terminal(plant, graph, command):
    assert command("score", graph, plant.new).stderr == ""


# What a graph cannot do


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("map", ["NEW", "-o", "OUT"]),
        ("report", ["NEW", "-o", "OUT.html"]),
        ("inspect", ["IMAGE"]),
        ("export", ["-o", "OUT.onnx"]),
        ("drift", ["NEW"]),
        ("threshold", ["--false-alarms", "0.2", "-o", "OUT"]),
        ("update", ["--fine", "NEW", "-o", "OUT"]),
    ],
)
def test_other_commands_say_what_they_need(plant, graph, tmp_path, name, options):
    named = {"NEW": plant.new, "IMAGE": next(plant.new.iterdir())}
    named |= {f"OUT{suffix}": tmp_path / f"o{suffix}" for suffix in ("", ".html", ".onnx")}
    done = run(LOADING, name, graph, *(named.get(option, option) for option in options))
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "is an ONNX file, which score, evaluate, info, serve and watch take" in message
    assert "torch is imported" not in message


def test_a_graph_without_maps_has_no_pictures(plant, command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plant.detector, "_normal_patches", None)
    target = export_onnx(plant.detector, tmp_path / "a.onnx")
    done = command("evaluate", target, *labelled(plant), "--pictures", tmp_path / "pictures")
    assert (done.exit_code, "no anomaly maps in this file" in done.stderr) == (1, True)


def test_a_graph_is_computed_on_the_processor(plant, graph, command):
    done = command("score", graph, plant.new, "--device", "cuda")
    assert (done.exit_code, "is for .skanomaly files" in done.stderr) == (1, True)


# int8


def test_an_export_in_int8_calibrates_itself(plant, more, command, tmp_path, monkeypatch):
    monkeypatch.setattr(recalibrating, "_MOST_NOISE", 1.0)  # a tiny network of random weights
    target = tmp_path / "fast.onnx"
    done = command("export", plant.model, "-o", target, "--quantize", "int8",
                   "--calibration", more)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = OnnxDetector.load(target)
    assert found.card["n_calibrating"] == 12
    said = command("info", target).stdout
    assert "quantization:   int8; rounding moves scores" in said


def test_an_export_in_int8_needs_new_and_readable_images(plant, more, command, tmp_path):
    target = tmp_path / "fast.onnx"

    def refused(*options):
        done = command("export", plant.model, "-o", target, *options)
        assert not target.exists()
        return done.exit_code, " ".join(done.stderr.split())

    for options in (["--quantize", "int8"], ["--calibration", more]):
        code, said = refused(*options)
        assert (code, "go together" in said) == (1, True)
    code, said = refused("--quantize", "int8", "--calibration", more / "0.png")
    assert (code, "--calibration gives 1 different images" in said) == (1, True)
    code, said = refused("--quantize", "int8", "--calibration", plant.good)
    assert (code, "learned from" in said) == (1, True)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    code, said = refused("--quantize", "int8", "--calibration", more, "--calibration", broken)
    assert (code, "nothing was exported; unreadable: 1" in said) == (2, True)
