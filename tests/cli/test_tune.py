"""The command tune: known defects weigh the feature spaces of a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from images import blobs
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.cli import main

NORMAL = blobs(np.random.default_rng(0), 24)


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.fixture
def folder(tmp_path):
    detector = TransformalyDetector(image_size=28, n_blocks=1, contamination=0.2, random_state=0)
    (tmp_path / "normal").mkdir()
    paths = [str(tmp_path / "normal" / f"{index:02}.png") for index in range(24)]
    for path, image in zip(paths, NORMAL, strict=True):
        Image.fromarray(image).save(path)
    detector.fit(paths).save(tmp_path / "m.skanomaly")
    (tmp_path / "defects").mkdir()
    odd = blobs(np.random.default_rng(1), 5)
    odd[:, 8:16, 8:16] = 255
    for index, image in enumerate(odd):
        Image.fromarray(image).save(tmp_path / "defects" / f"{index}.png")
    return tmp_path


def test_tune_writes_the_model_that_tune_fusion_makes(folder):
    done = run("tune", folder / "m.skanomaly", folder / "defects", "-o", folder / "t.skanomaly")
    assert done.exit_code == 0, done.output
    tuned = TransformalyDetector.load(folder / "t.skanomaly")
    expected = TransformalyDetector.load(folder / "m.skanomaly")
    expected.tune_fusion([str(path) for path in sorted((folder / "defects").iterdir())])
    assert tuned.fusion_weights_ == expected.fusion_weights_
    assert tuned.offset_ == expected.offset_
    for space, weight in tuned.fusion_weights_.items():
        assert f"{weight:8.2f}  {space}" in done.stdout
    assert "by tune_fusion" in run("info", folder / "t.skanomaly").stdout


def test_json(folder):
    model = folder / "t.skanomaly"
    done = run("tune", folder / "m.skanomaly", folder / "defects", "-o", model, "--json")
    found = json.loads(done.stdout)
    assert found["n_defects"] == 5
    assert found["weights"] == TransformalyDetector.load(model).fusion_weights_


def test_wrong_images_end_in_one_sentence(folder):
    model, out = folder / "m.skanomaly", folder / "t.skanomaly"
    known = folder / "normal" / "00.png"
    (folder / "defects" / "9.png").write_bytes(b"no image")
    for arguments, code, message in (
        (["tune", model, known, "-o", out], 1, "knows 1 of 1 defects as normal"),
        (["tune", model, folder / "defects", "-o", out], 2, "nothing was learned from 6 images"),
        (["tune", model, known, "-o", model], 1, "m.skanomaly"),
    ):
        done = run(*arguments)
        assert done.exit_code == code, done.output
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()
