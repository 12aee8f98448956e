"""
=======================================
How good is a map? Defects put in place
=======================================

Maps look convincing, right or wrong. To measure them takes masks that say where the defects are,
and mostly nobody has drawn any. :func:`~skanomaly_vit.datasets.paste_defects` puts scratches,
stains and foreign pieces on normal images, and says where; with that,
:func:`~skanomaly_vit.evaluation.pixel_auroc` and
:func:`~skanomaly_vit.evaluation.per_region_overlap` tell the three kinds of map apart.

The images are solar cells of the ELPV dataset [1]_. Pasted defects are no real ones: a map that
misses them will hardly find those, but the reverse is not true.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Cells with a defect each
# ------------------------
# Thirty functional cells that the detector is not fitted on get a defect.

import matplotlib.pyplot as plt
import numpy as np

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv, paste_defects
from skanomaly_vit.display import AnomalyMapDisplay
from skanomaly_vit.evaluation import per_region_overlap, pixel_auroc

N_TRAIN, N_TEST = 150, 30

cells = load_elpv()
functional = np.flatnonzero((cells.module_type == "mono") & (cells.defect_probability == 0))
functional = cells.images[np.random.default_rng(0).permutation(functional)]
damaged = paste_defects(functional[N_TRAIN : N_TRAIN + N_TEST], random_state=0)
area = np.mean([mask.mean() for mask in damaged.masks])
print(f"a defect takes {100 * area:.1f} % of its image on average")

# %%
# Maps, and one by chance
# -----------------------
# ``"discrepancy"`` is made of the students' errors, ``"features"`` of the distance between tokens
# and those of normal patches, ``"both"`` of their sum. Chance is a map of noise, as coarse as the
# others.

detector = TransformalyDetector(n_blocks=5, n_jobs=2, random_state=0)
detector.fit(functional[:N_TRAIN])
maps = {
    method: detector.anomaly_map(damaged.images, method)
    for method in ("both", "features", "discrepancy")
}
noise = np.random.default_rng(0).normal(size=(N_TEST, 8, 8))
height, width = damaged.masks[0].shape
maps["chance"] = noise.repeat(-(-height // 8), 1).repeat(-(-width // 8), 2)[:, :height, :width]

# %%
# How well they tell defects from the rest
# ----------------------------------------
# The AUROC counts all pixels alike and is lenient: a defect is small, so a map that marks ten times
# its area is still right on most pixels. The overlap per region (PRO) averages the share of a
# defect that is found while no more than 30 % of the normal pixels are marked falsely.

measures = {"pixel AUROC": pixel_auroc, "overlap per region": per_region_overlap}
values = {
    name: [100 * measure(damaged.masks, those) for those in maps.values()]
    for name, measure in measures.items()
}
for method, *figures in zip(maps, *values.values(), strict=True):
    print(f"{method:<12}", "  ".join(f"{figure:5.1f} %" for figure in figures))

# %%
# By kind, scratches come out last, if not by much. They are a few pixels thin, and a patch of the
# network is 37 pixels wide here, so that the map marks more than the scratch.

kinds = np.unique(damaged.kinds)
members = {kind: np.flatnonzero(damaged.kinds == kind) for kind in kinds}
for kind, those in members.items():
    found = pixel_auroc([damaged.masks[i] for i in those], maps["both"][those])
    print(f"{kind:<8} ({len(those):2d}) pixel AUROC {100 * found:5.1f} %")

# %%
# The picture
# -----------
# On the left a cell of each kind, its defect outlined, beside the map of both spaces. On the right
# how well the maps do.

figure = plt.figure(figsize=(13, 7.5), layout="constrained")
left, right = figure.subfigures(1, 2)

shown = [those[0] for those in members.values()]
AnomalyMapDisplay.from_predictions(
    [damaged.images[i] for i in shown],
    maps["both"][shown],
    masks=[damaged.masks[i] for i in shown],
    titles=kinds,
    ax=left.subplots(),
)

colors = ["#999999" if name == "chance" else "#0072B2" for name in maps]
for ax, (name, figures) in zip(right.subplots(2, 1), values.items(), strict=True):
    bars = ax.barh([*maps], figures, color=colors, height=0.6)
    ax.bar_label(bars, fmt="%.1f", padding=4, fontsize=13)
    ax.set(xlim=(0, 112), xlabel="%", title=name)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=12, length=0)
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig("pasted_defects.png", dpi=100)
