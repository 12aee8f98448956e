"""`skanomaly verify`: whether a model scores here as it did where it was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skanomaly_vit._images import source as _source
from skanomaly_vit.onnx import OnnxDetector
from skanomaly_vit.onnx import _file as _file

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def brighter(monkeypatch):
    """A machine whose files are decoded 20 levels brighter."""
    decode = _source.decode_image
    monkeypatch.setattr(
        _source, "decode_image", lambda item, limit: np.minimum(decode(item, limit), 235) + 20
    )


def test_the_same_machine_is_the_same(plant, command):
    done = command("verify", plant.model, "--batch-size", 1, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"{plant.model}: same to" in done.stdout
    for stage in ("decoding", "resizing", "backbone", "students", "densities"):
        assert f"  {stage:<11}same" in done.stdout
    found = json.loads(command("verify", plant.model, "--json").stdout)
    assert found["model"] == str(plant.model)
    assert found["same"] is True
    assert found["tolerance"] == 0.001
    assert found["unit"] == pytest.approx(plant.detector.calibration_scores_.std())


def test_another_machine_is_named_with_its_stage(plant, command, brighter):
    done = command("verify", plant.model)
    assert done.exit_code == 3
    assert "differs by" in done.stdout
    assert "The first stage to differ is decoding." in done.stdout
    assert "decoding   differs, by up to 2e+01 levels of 255" in done.stdout
    assert "its threshold does not hold here" in done.stderr
    assert json.loads(command("verify", plant.model, "--json").stdout)["first"] == "decoding"
    assert command("verify", plant.model, "--tolerance", 1e6).exit_code == 0


def test_an_older_file_says_how_to_get_fixtures(command):
    done = command("verify", DATA / "format-4.skanomaly")
    assert done.exit_code == 1
    assert "carries no fixtures to compare with; load and save it again" in done.stderr


@pytest.fixture(scope="module")
def exported(plant, command, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "parts.onnx"
    done = command("export", plant.model, "-o", path)
    assert done.exit_code == 0, done.output
    return path


def test_an_onnx_file_is_compared_with_torch(plant, exported, command):
    found = json.loads(command("verify", exported, "--json").stdout)
    assert found["same"] is True
    assert [stage["name"] for stage in found["stages"]] == ["decoding", "resizing", "graph"]
    assert 0 < found["difference"] < 0.005
    assert found["unit"] == pytest.approx(plant.detector.calibration_scores_.std())


def test_an_onnx_file_elsewhere_is_named_with_its_stage(exported, command, brighter):
    done = command("verify", exported)
    assert done.exit_code == 3
    assert "The first stage to differ is decoding." in done.stdout


def test_an_onnx_file_without_fixtures_says_how_to_get_them(exported, command, monkeypatch):
    load = OnnxDetector.load.__func__

    def load_older(cls, *args, **options):
        detector = load(cls, *args, **options)
        del detector.card["fixtures"]
        return detector

    monkeypatch.setattr(OnnxDetector, "load", classmethod(load_older))
    done = command("verify", exported)
    assert done.exit_code == 1
    assert "carries no fixtures to compare with; export the model again" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("scores"),
        lambda found: found.update(unit=0),
        lambda found: found.update(files=["no base64"] * 3),
        lambda found: found.update(inputs=""),
        lambda found: found["scores"].pop(),
    ],
)
def test_forged_fixtures_of_an_onnx_file_are_refused(exported, command, tmp_path, change):
    import onnx

    shutil.copy(exported, tmp_path / "a.onnx")
    proto = onnx.load(tmp_path / "a.onnx")
    _, values = _file.read(str(exported))
    change(values["fixtures"])
    del proto.metadata_props[:]
    _file.write(tmp_path / "a.onnx", proto, values)
    done = command("verify", tmp_path / "a.onnx")
    assert done.exit_code == 1
    assert "its fixtures are damaged" in done.stderr
