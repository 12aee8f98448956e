"""Files of images, and a detector whose work on them takes several shards."""

from __future__ import annotations

import pytest
from engines import BACKBONE, save_images

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone import passes as _passes

N_IMAGES = 80


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"), N_IMAGES)


@pytest.fixture
def detector(paths, monkeypatch):
    monkeypatch.setattr(_passes, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(_passes, "SHARDS_PER_SUM", 1)
    return TransformalyDetector(
        **BACKBONE, n_blocks=2, batch_size=4, contamination=0.2, random_state=0
    ).fit(paths)
