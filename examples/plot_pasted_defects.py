"""
===============================
Map metrics with pasted defects
===============================

Anomaly maps look convincing, right or wrong. To measure them you need masks of the defects, and few
data sets have any. :func:`~skanomaly_vit.datasets.paste_defects` pastes scratches, stains and
foreign pieces on normal images, and returns the masks.
:func:`~skanomaly_vit.evaluation.pixel_auroc` and
:func:`~skanomaly_vit.evaluation.per_region_overlap` then compare the three kinds of maps.

The images are solar cells of the ELPV dataset [1]_. Pasted defects are no real ones: a map that
misses them will hardly find real defects, but a map that finds them may still miss real ones.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Cells with pasted defects
# -------------------------
# Thirty functional cells, on which we do not fit the detector, get one defect each.

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
# Maps, and a random one
# ----------------------
# ``"discrepancy"`` maps are made of the errors of the students, ``"features"`` maps of the
# distances between tokens and those of normal patches, ``"both"`` maps of their mean. The random
# map is noise, as coarse as the others.

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
# Pixel AUROC and overlap per region
# ----------------------------------
# The AUROC counts all pixels alike and is lenient: defects are small, so a map that marks ten times
# their area is still right on most pixels. The overlap per region (PRO) is stricter: it averages
# the share of each defect that the map finds while it marks at most 30 % of the normal pixels.

measures = {"pixel AUROC": pixel_auroc, "overlap per region": per_region_overlap}
values = {
    name: [100 * measure(damaged.masks, those) for those in maps.values()]
    for name, measure in measures.items()
}
for method, *figures in zip(maps, *values.values(), strict=True):
    print(f"{method:<12}", "  ".join(f"{figure:5.1f} %" for figure in figures))

# %%
# Scratches come out last, if not by much. A scratch is a few pixels thin, and a patch of the
# network is 37 pixels wide here; so the map marks more than the scratch.

kinds = np.unique(damaged.kinds)
members = {kind: np.flatnonzero(damaged.kinds == kind) for kind in kinds}
for kind, those in members.items():
    found = pixel_auroc([damaged.masks[i] for i in those], maps["both"][those])
    print(f"{kind:<8} ({len(those):2d}) pixel AUROC {100 * found:5.1f} %")

# %%
# The picture
# -----------
# On the left, a cell of each kind with its defect outlined, beside the map of both spaces. On the
# right, the two metrics of each map.

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
