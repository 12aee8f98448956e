"""A plant: folders of parts, good and defective, and a model of the good ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from images import blobs
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.cli import main


def save_all(images, folder):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def command():
    """Runs a command; warnings and errors are those of the tests."""

    def run(*args, stdin=None):
        return CliRunner().invoke(main, list(map(str, args)), input=stdin)

    return run


@pytest.fixture(scope="session")
def plant(tmp_path_factory):
    """Folders `good` (learned from), `new` and `defect/<kind>`; `model`, and its `detector`."""
    root = tmp_path_factory.mktemp("plant")
    rng = np.random.default_rng(0)
    good = save_all(blobs(rng, 40), root / "good")
    new = save_all(blobs(rng, 20), root / "new")
    noise = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    save_all(noise, root / "defect/noise")
    save_all(np.roll(blobs(rng, 5), 1, axis=1), root / "defect/moved")  # hard to find
    paths = sorted(map(str, good.iterdir()))
    detector = TransformalyDetector(
        backbone="skanomaly_tiny",
        pretrained=False,
        image_size=32,
        n_blocks=2,
        contamination=0.2,
        validation_fraction=0.5,
        random_state=0,
    ).fit(paths)
    model = root / "parts.skanomaly"
    detector.save(model)
    return SimpleNamespace(
        root=root, good=good, new=new, defect=root / "defect", model=model, detector=detector
    )
