"""
============
Anomaly maps
============

A score says *that* an image is abnormal; an anomaly map says *where*. This example fits
:class:`~skanomaly_vit.TransformalyDetector` on functional solar cells of the ELPV dataset [1]_, and
draws the maps of abnormal cells that experts call defective. The detector has seen no drawing of a
crack, in training or later.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Solar cells
# -----------
# We keep monocrystalline cells whose label is certain: functional or defective.

import matplotlib.pyplot as plt
import numpy as np

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.display import AnomalyMapDisplay

N_TRAIN, N_DEFECTIVE = 100, 24

cells = load_elpv()
mono = cells.module_type == "mono"
rng = np.random.default_rng(0)
functional, defective = (
    cells.images[rng.permutation(np.flatnonzero(mono & (cells.defect_probability == p)))]
    for p in (0, 1)
)
normal, unseen = functional[:N_TRAIN], functional[N_TRAIN : N_TRAIN + 2]

# %%
# Fit
# ---
# The embedded backbone cuts an image into 8 x 8 patches. Twice its image size gives 16 x 16 patches
# and a finer map, at four times the work.

detector = TransformalyDetector(image_size=224, n_blocks=5, n_jobs=2, random_state=0).fit(normal)

# %%
# Cells to look at
# ----------------
# The lowest scores belong to the most abnormal cells. We take six of the lower half of 24 defective
# cells. We skip the very lowest: those cells are dark all over, and their maps are bright all over.

suspects = defective[:N_DEFECTIVE]
order = detector.score_samples(suspects).argsort()
chosen = [*suspects[order[2:14:2]], *unseen]
titles = [*["defective"] * 6, *["functional"] * 2]

# %%
# The picture
# -----------
# Each image stands beside its map. All maps have one scale, that of all pictures of maps: 0 is the
# mean of patches of normal cells, and the unit is their standard deviation; what is below 2 stays
# as it is. The contour lies at 5. The p-value says which share of normal cells looks as abnormal.
# The last two cells are functional ones that the detector has not seen.

figure = plt.figure(figsize=(13, 10.5), layout="constrained")
figure.suptitle("Solar cells and their anomaly maps", fontsize=16)
for ax, half in zip(figure.subplots(1, 2), (slice(0, 4), slice(4, 8)), strict=True):
    AnomalyMapDisplay.from_estimator(detector, chosen[half], titles=titles[half], contour=5, ax=ax)
figure.savefig("anomaly_maps.png", dpi=100)
