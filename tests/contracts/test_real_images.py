"""The main job on real images with the embedded backbone."""

from __future__ import annotations

import numpy as np
import pytest
from elpv_dataset.utils import load_dataset
from sklearn.metrics import roc_auc_score
from students import with_student

from skanomaly_vit import TransformalyDetector


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Electroluminescence images of monocrystalline solar cells: functional, defective."""
    images, probability, kind = load_dataset()
    mono = kind == "mono"
    order = np.random.default_rng(0).permutation(np.flatnonzero(mono & (probability == 0)))
    return images[order], images[mono & (probability == 1)][:100]


def test_finds_defects_and_flags_about_the_share_it_was_told_to(cells):
    functional, defective = cells
    detector = TransformalyDetector(**with_student(
        image_size=56, n_blocks=3, max_epochs=2, contamination=0.1, validation_fraction=0.4,
        random_state=0, n_jobs=2,
    )).fit(functional[:300])  # fmt: skip
    scores = detector.score_samples(functional[300:]), detector.score_samples(defective)
    y = np.repeat([1, 0], [len(scores[0]), len(scores[1])])
    assert roc_auc_score(y, np.concatenate(scores)) > 0.8
    # The quantile of 120 held-out cells varies by 0.027, the share among 288 new ones by 0.018:
    # three deviations of both together.
    assert abs(np.mean(scores[0] < detector.offset_) - 0.1) < 0.1
    assert np.mean(scores[1] < detector.offset_) > 0.3
