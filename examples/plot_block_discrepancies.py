"""
=========================
Discrepancy of each block
=========================

A student learns from normal images to imitate one block of the network. Its error on a new image is
the discrepancy of that block. Early blocks see edges and texture, late blocks see what the image
shows; so the blocks with large discrepancies hint at the kind of defect.

Read this example if you want to explain an alarm, or to choose the number of blocks that get a
student. It compares groups of solar cells of the ELPV dataset [1]_ by the probability that experts
give to a defect.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Solar cells
# -----------
# Students learn from functional cells. Other functional cells show which discrepancies are usual,
# because students have too small errors on the images that they have learned from.

import matplotlib.pyplot as plt
import numpy as np

from skanomaly_vit import BlockDistillation
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.display import BlockDiscrepancyDisplay

N_TRAIN, N_NORMAL, N_OF_GROUP = 200, 60, 40
GROUPS = {0: 0, 33: 1 / 3, 67: 2 / 3, 100: 1}  # percent -> probability in the data set

cells = load_elpv()
rng = np.random.default_rng(0)


def draw(probability):
    """Return the monocrystalline cells of a probability, shuffled."""
    is_near = np.isclose(cells.defect_probability, probability, atol=0.01)
    return cells.images[rng.permutation(np.flatnonzero(is_near & (cells.module_type == "mono")))]


pools = {name: draw(probability) for name, probability in GROUPS.items()}
train, normal, pools[0] = np.split(pools[0], [N_TRAIN, N_TRAIN + N_NORMAL])
images = np.concatenate([pool[:N_OF_GROUP] for pool in pools.values()])
groups = np.concatenate([[name] * len(pool[:N_OF_GROUP]) for name, pool in pools.items()])

# %%
# Students of all blocks
# ----------------------

students = BlockDistillation(n_blocks=11, n_jobs=2, random_state=0).fit(train)
discrepancies = students.transform(images)
usual = students.transform(normal)

# %%
# The picture
# -----------
# The upper plot has a line for each group: the distance of its cells from normal ones, block by
# block, in standard deviations of the normal cells. The lower plot has a row for each of a few
# cells. Each group begins with the cell that differs least, and shows single cells that the mean of
# the group hides. The colours end at 12, because two cells lie far beyond and would darken all
# others.

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 11), layout="constrained")
options = {"reference": usual, "block_names": range(1, 12)}
BlockDiscrepancyDisplay.from_predictions(discrepancies, groups=groups, **options, ax=above)
above.set_title("Solar cells by the probability of a defect, in %", fontsize=14)
above.set_ylim(-3, 18)  # a few cells make the bars of the last group twice as long

few = []
for name in GROUPS:
    members = np.flatnonzero(groups == name)[:6]
    few.extend(members[discrepancies[members].sum(axis=1).argsort()])
titles = [f"{groups[i]} %" for i in few]
BlockDiscrepancyDisplay.from_predictions(
    discrepancies[few], titles=titles, kind="heatmap", **options, ax=below
)
below.images[0].set_clim(0, 12)
for row in (5.5, 11.5, 17.5):
    below.axhline(row, color="white", linewidth=2)
below.set_title("Six cells of each group", fontsize=14)
figure.savefig("block_discrepancies.png", dpi=100)
