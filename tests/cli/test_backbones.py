"""The commands that list networks and fetch their weights, and what a fit says of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from click.testing import CliRunner
from images import blobs
from PIL import Image
from safetensors.torch import load_file, save_file

import skanomaly_vit
from skanomaly_vit.cli import main
from skanomaly_vit.cli._backbones import SUGGESTED

TINY = "vit_tiny_patch16_224.augreg_in21k"


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.mark.parametrize("words", [["backbones"], ["backbones", "list"]])
def test_networks_to_begin_with(words):
    lines = run(*words).stdout.splitlines()
    titles = ["name", "parameters", "pixels", "patches", "work", "AUROC", "licence"]
    assert lines[0].split() == titles
    assert [line.split()[0] for line in lines[1:-3]] == list(SUGGESTED)
    assert lines[1].split()[:7] == ["embedded", "20", "M", "112x112", "64", "1", "87.7"]
    assert "not measured  apache-2.0" in lines[2]
    assert "magnetic tiles" in lines[-2]


def test_the_auroc_is_that_of_the_benchmark():
    results = Path(skanomaly_vit.__file__).parents[1] / "benchmarks/results/magnetic-tiles.csv"
    if not results.exists():
        pytest.skip("the package is not run from a checkout")
    with open(results, newline="") as stream:
        rows = [
            (row["backbone"], row["image_size"], float(row["auroc"]))
            for row in csv.DictReader(stream)
            if (row["method"], row["seed"]) == ("transformaly", "0")
        ]
    for words, known_as in (
        (["embedded"], ("embedded", "own")),
        (["embedded", "--image-size", 168], ("embedded", "168")),
        (["embedded", "--image-size", 224], ("embedded", "224")),
        (["vit_base_patch16_clip_quickgelu_224.openai"],
         ("vit_base_patch16_clip_quickgelu_224", "own")),
    ):  # fmt: skip
        kinds = [auroc for *network, auroc in rows if tuple(network) == known_as]
        assert len(kinds) == 5
        (found,) = json.loads(run("backbones", "list", *words, "--format", "json").stdout)
        assert found["auroc"] == pytest.approx(100 * np.mean(kinds), abs=0.05)
    for words in (
        ["embedded", "--image-size", 56],
        ["vit_base_patch16_clip_quickgelu_224.metaclip_400m"],  # other weights
    ):
        (found,) = json.loads(run("backbones", "list", *words, "--format", "json").stdout)
        assert found["auroc"] is None


def test_a_network_at_another_size():
    found = json.loads(
        run("backbones", "list", TINY, "--image-size", 32, "--format", "json").stdout
    )
    assert found == [
        {
            "name": TINY,
            "parameters": sum(
                p.numel() for p in timm.create_model(TINY, num_classes=0, img_size=32).parameters()
            ),
            "image_size": [32, 32],
            "n_patches": 4,
            "n_blocks": 12,
            "work": pytest.approx(0.0, abs=0.1),
            "license": "apache-2.0",
            "auroc": None,
        }
    ]


def test_speed_and_memory_of_a_network():
    words = ("backbones", "list", TINY, "--image-size", 32, "--measure", "--device", "cpu")
    (found,) = json.loads(run(*words, "--format", "json").stdout)
    assert found["images_per_second"] > 0
    assert found["peak_bytes"] > 2**27  # torch alone is larger
    text = run(*words).stdout
    assert text.splitlines()[0].split()[5:7] == ["images/s", "memory"]
    assert "GiB" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "vit_tiny_patch16_225"], "Close names: vit_tiny_patch16_224"),
        (["list", "resnet18"], "no transformer with a list of blocks"),
        (["list", "embedded", "--image-size", "100"], "Pass image_size=(98, 98)"),
        (["list", "swin_tiny_patch4_window7_224"], "no transformer with a list of blocks"),
        (["fetch", "embedded", "-o", "w.safetensors"], "comes with this package"),
        (["fetch", TINY, "-o", "w.pth"], "has to end in .safetensors"),
        (["fetch", "vit_tiny_patch16_225", "-o", "w.safetensors"], "is not a timm model"),
        (["fetch", "vit_tiny_patch16_224.tag", "-o", "w.safetensors"], "has the tag 'tag'"),
    ],
)
def test_networks_that_do_not_serve(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("backbones", *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def fetch(output, home):
    """Fetch in a process of its own: the hub's client reads its settings on import."""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "skanomaly_vit", "backbones", "fetch", TINY, "-o", str(output)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_fetched_weights_serve_a_fit_without_a_network(tmp_path):
    model = timm.create_model(TINY)
    folder = (
        tmp_path / "hf" / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    )
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    done = fetch(tmp_path / "w.safetensors", tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    assert f"--backbone {TINY} --pretrained" in done.stderr
    weights = load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(weights["pos_embed"], model.state_dict()["pos_embed"])
    for index, image in enumerate(blobs(np.random.default_rng(0), 4)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    words = ["--backbone", TINY, "--pretrained", tmp_path / "w.safetensors", "--image-size", 32]
    fitted = run("fit", *tmp_path.glob("*.png"), "-o", tmp_path / "m", *words, "--n-blocks", 1)
    assert fitted.exit_code == 0, fitted.stderr


def test_weights_out_of_reach_say_the_ways_out(tmp_path):
    done = fetch(tmp_path / "w.safetensors", tmp_path)
    assert done.returncode == 3
    assert "Three ways out" in done.stderr
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (
            150,
            "about 150 x 150 pixels, and the network sees 56 x 56: one of its 4 x 4 patches covers "
            "38 x 38 pixels. It hardly sees a defect of less than half a patch (19 pixels). "
            "--image-size 112 sees smaller ones, at 4.0 times the work.",
        ),
        (90, "--image-size 84 sees smaller ones, at 2.2 times the work."),
        (56, None),
    ],
)
def test_a_fit_says_what_its_network_can_see(side, said, tmp_path):
    for index, image in enumerate(blobs(np.random.default_rng(0), 6)):
        Image.fromarray(image).resize((side, side)).save(tmp_path / f"{index}.png")
    done = run(
        "fit", *sorted(tmp_path.glob("*.png")), "-o", tmp_path / "m", "--image-size", 56,
        "--n-blocks", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    if said is None:
        assert "the network sees" not in done.stderr
    else:
        assert said in done.stderr
