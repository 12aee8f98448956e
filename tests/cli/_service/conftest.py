"""A model as a detector and as an ONNX file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from backbones import family
from images import blobs
from students import with_student

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.onnx import OnnxDetector, export_onnx


@pytest.fixture(scope="package")
def line(tmp_path_factory):
    """`detector`, its ONNX file `path`, the `exported` detector, `good` and `odd` images."""
    rng = np.random.default_rng(0)
    quick = {"backbone": family("class token"), "n_blocks": 2, "random_state": 0}
    detector = TransformalyDetector(contamination=0.2, **with_student(**quick))
    detector.fit(blobs(rng, 24))
    path = export_onnx(detector, tmp_path_factory.mktemp("line") / "parts.onnx")
    return SimpleNamespace(
        detector=detector,
        path=path,
        exported=OnnxDetector.load(path),
        good=blobs(rng, 6),
        odd=rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8),
    )
