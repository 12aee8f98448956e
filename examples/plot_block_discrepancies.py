"""
===============================================
Which block of the network objects to a defect?
===============================================

A student has learned from normal images to do what one block of the network does. How badly it
does so on a new image is that block's discrepancy. Early blocks see edges and texture, late ones
what the image shows, so it is telling which of them object.

We compare groups of solar cells of the ELPV dataset [1]_, by the probability that experts give to
a defect.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# The cells
# ---------
# Students learn from functional cells. Other functional ones say what discrepancies are usual: on
# images that a student has learned from they are too small.

import matplotlib.pyplot as plt
import numpy as np

from skanomaly_vit import BlockDistillation
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.display import BlockDiscrepancyDisplay

N_TRAIN, N_NORMAL, N_OF_GROUP = 200, 60, 40
GROUPS = {"functional": 0, "doubtful (1/3)": 1 / 3, "likely defective (2/3)": 2 / 3, "defective": 1}

cells = load_elpv()
rng = np.random.default_rng(0)


def draw(probability):
    """Return the monocrystalline cells of a probability, shuffled."""
    is_near = np.isclose(cells.defect_probability, probability, atol=0.01)
    return cells.images[rng.permutation(np.flatnonzero(is_near & (cells.module_type == "mono")))]


pools = {name: draw(probability) for name, probability in GROUPS.items()}
train, normal, pools["functional"] = np.split(pools["functional"], [N_TRAIN, N_TRAIN + N_NORMAL])
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
# Above, a line for each group: how far its cells lie from normal ones, block by block, in standard
# deviations of those. Below, the same for a few cells each, a row a cell; single ones stand out
# that the mean of their group hides.

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 11), layout="constrained")
options = {"reference": usual, "block_names": students.get_feature_names_out()}
BlockDiscrepancyDisplay.from_predictions(discrepancies, groups=groups, **options, ax=above)
above.set_title("Groups of solar cells")

few = np.concatenate([np.flatnonzero(groups == name)[:6] for name in GROUPS])
BlockDiscrepancyDisplay.from_predictions(
    discrepancies[few], titles=groups[few], kind="heatmap", **options, ax=below
)
below.set_title("Six of each group")
figure.savefig("block_discrepancies.png", dpi=100)
