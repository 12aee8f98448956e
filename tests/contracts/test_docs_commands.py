"""The commands of the documentation run, page by page, on real images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import skanomaly_vit
from skanomaly_vit import TransformalyDetector
from skanomaly_vit.cli import main
from skanomaly_vit.datasets import load_elpv

ROOT = Path(skanomaly_vit.__file__).parents[1]
FENCE = re.compile(r"^```(?:sh|console)[^\n]*\n(.*?)^```$", re.M | re.S)

#: What runs until it is stopped, takes minutes, or needs a network.
ENDLESS = re.compile(r"skanomaly (serve|watch|backbones|fit .*--backbone)")

#: A limit that so few images may miss is no wrong usage.
MISSED = 4

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="the package is not run from a checkout"
)


def commands_of(page: Path) -> list[str]:
    """Commands of a page that can be run alone, in their order."""
    lines = [line for block in FENCE.findall(page.read_text()) for line in block.splitlines()]
    plain = [line.partition(" #")[0].removeprefix("$ ").strip() for line in lines]
    return [
        line
        for line in plain
        if line.startswith("skanomaly ") and not ENDLESS.match(line) and not set("|<>\\") & {*line}
    ]


PAGES = [
    page
    for page in (
        ROOT / "README.md",
        *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/[a-z]*/*.md")]),
    )
    if commands_of(page)
]


@pytest.fixture(scope="module")
def cells():
    found = load_elpv()
    mono = found.module_type == "mono"
    return [
        [
            Image.open(path).resize((56, 56))
            for path in found.images[mono & (found.defect_probability == share)][:30]
        ]
        for share in (0, 1)
    ]


@pytest.fixture(scope="module")
def model(cells):
    detector = TransformalyDetector(
        image_size=56, n_blocks=2, validation_fraction=0.5, contamination=0.2, random_state=0
    )
    return detector.fit(cells[0][:16])


@pytest.fixture
def folder(cells, model, tmp_path, monkeypatch):
    """What pages take to be on the disk."""
    good, odd = cells
    for place, images in {
        "parts/good": good[:16],
        "parts/new": [*good[16:20], *odd[:4]],
        "test/good": good[20:30],
        "test/defect/crack": odd[4:10],
        "parts-2.skanomaly.defects": odd[4:10],
        "inbox": good[16:20],
        "monday": good[16:23],
        "tuesday": good[23:30],
        "parts/known_defects": odd[10:13],
        "FOLDER": good[16:20],
    }.items():
        (tmp_path / place).mkdir(parents=True)
        for index, image in enumerate(images, 10):
            image.save(tmp_path / place / f"{index}.png")
    for name, box in {"part.png": (4, 4, 52, 52), "number.png": (30, 8, 50, 14)}.items():
        mask = Image.new("L", (56, 56))
        mask.paste(255, box)
        mask.save(tmp_path / name)
    for name in ("parts", "parts-2", "cells"):
        model.save(tmp_path / f"{name}.skanomaly")
    (tmp_path / "marks.csv").write_text("path,mark,note\nparts/new/10.png,fine,\n")
    rows = [f"test/good/{i}.png,normal" for i in range(10, 20)]
    rows += [f"test/defect/crack/{i}.png,anomaly" for i in range(10, 16)]
    (tmp_path / "test.csv").write_text("\n".join(["path,label", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page, folder, model):
    for command in commands_of(page):
        words = shlex.split(command)[1:]
        if words[0] == "fit":
            words += ["--image-size", "56", "--n-blocks", "2"]
        if "--false-alarms" in words:  # the rate takes more images than there are
            words[words.index("--false-alarms") + 1] = "0.2"
        done = CliRunner().invoke(main, words)
        assert done.exit_code in (0, MISSED), f"{command}\n{done.output}"
        if words[0] == "fit":
            model.save(folder / "parts.skanomaly")  # that of so few images has a coarse threshold
