"""Regions of interest on the command line: options of a fit, a line of info."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from images import blobs
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.cli import main

PART = np.zeros((32, 32), bool)
PART[4:20, 6:30] = True
NUMBER = np.zeros((32, 32), bool)
NUMBER[10:14, 8:20] = True


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.fixture
def folder(tmp_path):
    normal = tmp_path / "normal"
    normal.mkdir()
    for index, image in enumerate(blobs(np.random.default_rng(0), 24)):
        Image.fromarray(image).save(normal / f"{index:02}.png")
    Image.fromarray(PART).save(tmp_path / "part.png")
    Image.fromarray(NUMBER).save(tmp_path / "number.png")
    Image.fromarray(NUMBER[:16]).save(tmp_path / "half.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    return tmp_path


def fit(folder: Path, *options):
    small = ("--image-size", 28, "--n-blocks", 1, "--contamination", 0.2)
    return run("fit", folder / "normal", "-o", folder / "m.skanomaly", *small, *options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--roi", "part.png"], PART),
        (["--ignore", "number.png"], ~NUMBER),
        (["--roi", "part.png", "--ignore", "number.png", "--keep-aspect"], PART & ~NUMBER),
    ],
)
def test_a_fit_keeps_its_region(folder, options, expected):
    done = fit(folder, *(str(folder / o) if o.endswith("png") else o for o in options))
    assert done.exit_code == 0, done.output
    detector = TransformalyDetector.load(folder / "m.skanomaly")
    np.testing.assert_array_equal(detector.roi_, expected)
    assert detector.keep_aspect == ("--keep-aspect" in options)
    card = json.loads(run("info", folder / "m.skanomaly", "--json").stdout)
    assert card["region_share"] == expected.mean()
    assert (
        f"{expected.mean():.1%} of the pixels count" in run("info", folder / "m.skanomaly").stdout
    )
    assert run("score", folder / "m.skanomaly", folder / "normal").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--roi", "half.png"],
            "32 x 32 pixels have another ratio of sides than the region of interest, 32 x 16",
        ),
        (["--roi", "part.png", "--ignore", "half.png"], "--roi has 32 x 32 pixels, and --ignore"),
        (["--roi", "number.png", "--ignore", "number.png"], "leaves none of the pixels of --roi"),
        (["--roi", "black.png"], "leaves none that counts"),
        (["--roi", "normal/00.png.txt"], "does not exist"),
    ],
)
def test_wrong_regions_end_in_one_sentence(folder, options, message):
    done = fit(folder, *(str(folder / o) if "." in o else o for o in options))
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (folder / "m.skanomaly").exists()


@pytest.mark.parametrize(("text", "tiles"), [("2x3", (2, 3)), ("20", 20), ("auto", "auto")])
def test_a_fit_takes_tiles(folder, text, tiles):
    done = fit(folder, "--tiles", text)
    assert done.exit_code == 0, done.output
    assert TransformalyDetector.load(folder / "m.skanomaly").tiles == tiles
    assert "tiles=" in run("info", folder / "m.skanomaly").stdout
    table = run("score", folder / "m.skanomaly", folder / "normal").stdout
    assert len(table.splitlines()) == 25
    inspected = run("inspect", folder / "m.skanomaly", folder / "normal" / "00.png")
    assert inspected.exit_code == 0, inspected.output


@pytest.mark.parametrize("text", ["0", "2x", "x3", "2x0", "all", "1.5", "-1"])
def test_other_tiles_are_refused(folder, text):
    done = fit(folder, f"--tiles={text}")
    assert done.exit_code == 1
    assert "is not auto, a number of pixels, or ROWSxCOLUMNS" in " ".join(done.stderr.split())


def test_without_a_region_all_pixels_count(folder):
    assert fit(folder).exit_code == 0
    assert "all pixels count" in run("info", folder / "m.skanomaly").stdout


@pytest.mark.parametrize("name", ["score", "map"])
def test_an_image_that_the_region_does_not_fit_is_told(folder, name):
    fit(folder, "--roi", folder / "part.png")
    wide = folder / "normal/wide.png"
    Image.fromarray(blobs(np.random.default_rng(1), 1)[0][:20]).save(wide)
    output = [] if name == "score" else ["-o", folder / "maps"]
    done = run(name, folder / "m.skanomaly", folder / "normal", *output)
    assert done.exit_code == 2, done.output
    told = [line for line in done.stderr.splitlines() if line.startswith("unreadable: ")]
    assert told == [
        f"unreadable: {str(wide)!r}: 32 x 20 pixels have another ratio of sides than the region "
        "of interest, 32 x 32"
    ]
    if name == "score":
        assert len(done.stdout.splitlines()) == 1 + 24
