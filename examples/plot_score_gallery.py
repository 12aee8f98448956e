"""
=================================
Score histogram and image gallery
=================================

Before you trust a threshold, look at the images on its two sides. A histogram shows how well scores
separate functional and defective cells. A gallery shows the cells themselves, from the most normal
to the most abnormal.

The images are polycrystalline solar cells of the ELPV dataset [1]_. Their crystal grains all
differ, so they are harder than the monocrystalline cells of :doc:`plot_solar_cells`.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Solar cells
# -----------
# We fit on functional cells, keep other functional cells for comparison, and score a mixed lot,
# such as the production of a day.

import numpy as np

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.display import GalleryDisplay, ScoreDisplay

N_TRAIN, N_COMPARED, N_NEW, N_DEFECTIVE = 250, 80, 80, 60

cells = load_elpv()
poly = cells.module_type == "poly"
rng = np.random.default_rng(0)
functional, defective = (
    cells.images[rng.permutation(np.flatnonzero(poly & (cells.defect_probability == p)))]
    for p in (0, 1)
)
train, compared, new = np.split(
    functional[: N_TRAIN + N_COMPARED + N_NEW], [N_TRAIN, N_TRAIN + N_COMPARED]
)
lot = np.concatenate([new, defective[:N_DEFECTIVE]])
labels = np.repeat(["functional", "defective"], [N_NEW, N_DEFECTIVE])

# %%
# Fit
# ---
# We accept that 5 % of functional cells are flagged. Few held-out images set the threshold, so it
# is rough.

detector = TransformalyDetector(contamination=0.05, n_jobs=2, random_state=0).fit(train)
scores = detector.score_samples(lot)
compared_scores = detector.score_samples(compared)

# %%
# The histogram
# -------------
# Higher scores are more normal. The detector flags the cells left of the dashed
# line. Compare the two kinds of functional cells: a difference between new and earlier ones would
# mean that the production or the camera has changed.

display = ScoreDisplay.from_predictions(
    scores,
    normal_scores=compared_scores,
    offset=detector.offset_,
    y=labels,
    anomaly_label="defective",
)
display.ax_.set_title("Scores of polycrystalline solar cells")
display.figure_.savefig("score_histogram.png", dpi=100)

# %%
# The picture
# -----------
# Twenty-four cells in the order of their scores. Flagged cells have a wide frame. The label above a
# cell is the opinion of experts, which the detector does not know.

display = GalleryDisplay.from_predictions(
    lot, scores, offset=detector.offset_, titles=labels, n_images=24, n_columns=8
)
display.figure_.savefig("score_gallery.png", dpi=100)
