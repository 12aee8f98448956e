"""Draw the picture of the front page: docs/_static/hero.png.

Six monocrystalline solar cells that the detector has not seen, the first ones of a seeded draw:
three that work and three with a defect. Below each, what the detector says of it. The warm colour
lies where the patches are abnormal; one scale for all cells, from 2 to 8 standard deviations.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv

TARGET = Path(__file__).parent / "_static" / "hero.png"
N_TRAIN, N_SHOWN = 350, 3
LOW, HIGH = 2.0, 8.0
BLUE, ORANGE = "#0b5cad", "#d1400f"


def main() -> None:
    """Fit, choose the cells, draw."""
    cells = load_elpv()
    mono = cells.module_type == "mono"
    rng = np.random.default_rng(0)
    functional = rng.permutation(np.flatnonzero(mono & (cells.defect_probability == 0)))
    defective = rng.permutation(np.flatnonzero(mono & (cells.defect_probability == 1)))
    detector = TransformalyDetector(random_state=0).fit(cells.images[functional[:N_TRAIN]])
    shown = [*functional[N_TRAIN : N_TRAIN + N_SHOWN], *defective[:N_SHOWN]]
    paths = list(cells.images[shown])
    draw(paths, detector.anomaly_map(paths), detector.predict(paths), detector.p_values(paths))


def draw(paths: list[str], maps: np.ndarray, labels: np.ndarray, p_values: np.ndarray) -> None:
    """Draw cells, maps over them and verdicts below."""
    figure, axes = plt.subplots(1, len(paths), figsize=(12, 2.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, h_pad=0.02)
    for place, path, values, label, p_value in zip(
        axes, paths, maps, labels, p_values, strict=True
    ):
        is_anomaly = label == -1
        place.imshow(Image.open(path).convert("L"), cmap="gray", vmin=0, vmax=255)
        share = np.clip((values - LOW) / (HIGH - LOW), 0, 1)
        place.imshow(share, cmap="autumn_r", alpha=0.75 * share, vmin=0, vmax=1)
        place.set_xticks([])
        place.set_yticks([])
        for side in place.spines.values():
            side.set(color=ORANGE if is_anomaly else BLUE, linewidth=3)
        verdict = "anomaly" if is_anomaly else "normal"
        place.set_xlabel(
            f"{verdict}, p = {p_value:.2g}",
            color=ORANGE if is_anomaly else BLUE,
            fontsize=11,
            fontweight="bold",
        )
    figure.savefig(TARGET, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
