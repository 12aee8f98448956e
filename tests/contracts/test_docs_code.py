"""The Python code of the documentation runs, page by page, on real images."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image, ImageOps

import skanomaly_vit
from skanomaly_vit import BlockDistillation, TransformalyDetector, ViTFeatures
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.exceptions import CalibrationWarning, ConfusionWarning, UnreadableImageWarning

ROOT = Path(skanomaly_vit.__file__).parents[1]
#: A page may mark what cannot be run: the comment is not seen, by no reader.
BLOCK = re.compile(r"(<!-- not run: .*? -->\n+)?^```python\n(.*?)^```$", re.M | re.S)
N_NORMAL, N_ODD = 24, 6
#: What so few images, and a broken one, are warned of.
WARNINGS = (CalibrationWarning, ConfusionWarning, UnreadableImageWarning)

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="the package is not run from a checkout"
)

mpl.use("Agg")


def pages_with_code():
    pages = [ROOT / "README.md", *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/[a-z]*/*.md")])]
    return [page for page in pages if BLOCK.search(page.read_text())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What pages take to be on the disk: folders of parts, classes, a category of MVTec AD."""
    folder = tmp_path_factory.mktemp("pages")
    cells = load_elpv()
    kinds = [cells.module_type == "mono"] * 2 & np.array(
        [cells.defect_probability == probability for probability in (0, 1)]
    )
    good, odd = (
        [Image.open(path).resize((150, 150)) for path in cells.images[kind][:n]]
        for kind, n in zip(kinds, (N_NORMAL, N_ODD), strict=True)
    )
    for place, images in {
        "parts/good": good,
        "parts/new": [*good[:6], *odd],
        "classes/train/functional": good[:14],
        "classes/train/defective": odd * 2,
        "classes/test/functional": good[14:18],
        "classes/test/defective": odd[:4],
        "mvtec/screw/train/good": good[:12],
        "mvtec/screw/test/good": good[12:16],
        "mvtec/screw/test/crack": odd[:3],
        "mvtec/screw/ground_truth/crack": [],
    }.items():
        (folder / place).mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(folder / place / f"{i:03}.png")
    for i in range(3):
        mask = Image.new("L", (150, 150), 255)
        mask.save(folder / f"mvtec/screw/ground_truth/crack/{i:03}_mask.png")
    for name in ("a.png", "b.png"):
        good[0].save(folder / name)
    Image.new("L", (150, 150), 255).save(folder / "part.png")
    corners = [[20, 20], [80, 20], [80, 40], [20, 40]]
    polygons = {"imageHeight": 150, "imageWidth": 150, "shapes": [{"points": corners}]}
    (folder / "number.json").write_text(json.dumps(polygons))
    (folder / "cut_off.png").write_bytes((folder / "a.png").read_bytes()[:1000])
    return folder


@pytest.fixture(scope="module", autouse=True)
def small():
    """Half of the embedded backbone's image size where none is given: a quarter of the work."""
    with pytest.MonkeyPatch.context() as patch:
        for estimator in (TransformalyDetector, ViTFeatures, BlockDistillation):
            patch.setitem(estimator.__init__.__kwdefaults__, "image_size", 56)
        yield


@pytest.fixture(scope="module")
def fitted_on_parts(folder, small):
    normal = sorted(map(str, folder.glob("parts/good/*.png")))
    return TransformalyDetector(random_state=0).fit(normal)


@pytest.fixture
def names(folder, fitted_on_parts, monkeypatch):
    """What a page may take to be there: a fitted detector, images, their labels."""
    monkeypatch.chdir(folder)
    normal = sorted(map(str, folder.glob("parts/good/*.png")))
    new = sorted(map(str, folder.glob("parts/new/*.png")))
    yield {
        "TransformalyDetector": TransformalyDetector,
        # A copy: what a page adds to it is not known to the detector of another page.
        "detector": copy.copy(fitted_on_parts),
        "normal": normal,
        "new_normal": [ImageOps.mirror(Image.open(path)) for path in normal[:6]],
        "defects": [ImageOps.mirror(Image.open(path)) for path in new[6:]],
        "images": [*normal[:18], *new[6:]],
        "labels": ["fine"] * 18 + ["crack"] * N_ODD,
        "lots": np.arange(N_NORMAL) // 4,
        "frame": pd.DataFrame({"path": new}),
        "table": pd.DataFrame({"path": new, "weight": np.arange(len(new))}),
    }
    plt.close("all")


@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page, names):
    text = page.read_text()
    with warnings.catch_warnings():
        for category in WARNINGS:
            warnings.simplefilter("ignore", category)
        for block in BLOCK.finditer(text):
            if not block[1]:
                # With as many lines before it as in the page, so that a traceback tells its own.
                lines_before = text.count("\n", 0, block.start(2))
                exec(compile("\n" * lines_before + block[2], page, "exec"), names)
