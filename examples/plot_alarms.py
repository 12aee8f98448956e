"""
==============================
Alarms with a false-alarm rate
==============================

If you check each alarm by hand, you want to choose the share of false ones. A p-value tells how
rare an image is among normal images, and a threshold on p-values bounds the rate of false alarms.
This example tests the bound on images that the detector has never seen, and counts the defects that
it costs.

The images are solar cells of the ELPV dataset [1]_.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Solar cells
# -----------
# We put the functional cells in a random order, so that new cells are like those that set the
# threshold.

import matplotlib.pyplot as plt
import numpy as np

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.calibration import benjamini_hochberg
from skanomaly_vit.datasets import load_elpv

N_TRAIN, N_NEW = 400, 180

cells = load_elpv()
mono = cells.module_type == "mono"
rng = np.random.default_rng(0)
functional, defective = (
    cells.images[rng.permutation(np.flatnonzero(mono & (cells.defect_probability == p)))]
    for p in (0, 1)
)
train, new = np.split(functional[: N_TRAIN + N_NEW], [N_TRAIN])
defective = defective[:N_NEW]

# %%
# p-values
# --------
# The detector holds out half of the training cells. With n held-out cells, the smallest p-value is
# ``1 / (n + 1)``: more of them give finer p-values.

detector = TransformalyDetector(
    validation_fraction=0.5, image_size=56, n_blocks=5, n_jobs=2, random_state=0
).fit(train)
p_new, p_defective = detector.p_values(new), detector.p_values(defective)
n_held_out = len(detector.calibration_scores_)
print(f"{n_held_out} cells held out, the smallest p-value is {1 / (n_held_out + 1):.3f}")

# %%
# False-discovery rate of a batch
# -------------------------------
# ``benjamini_hochberg`` bounds another share: the share of false alarms among all alarms of a
# batch. It needs fine p-values: at 10 %, ten of 200 cells would have to have the smallest one here.

batch = np.concatenate([p_new, p_defective[:20]])
flagged = benjamini_hochberg(batch, 0.2)
print(
    f"of {flagged.sum()} flagged, {flagged[:N_NEW].sum()} are functional; "
    f"{20 - flagged[N_NEW:].sum()} of 20 defective ones are missed"
)

# %%
# The picture
# -----------
# The left plot shows p-values. Those of functional cells spread evenly, as they should; those of
# defective cells pile up at zero. The right plot shows the share of flagged cells for each rate of
# false alarms that you can ask for. The detector keeps the rate on average only, because few cells
# set the threshold and few are counted: nine of ten draws of cells lie in the grey band.

rates = np.linspace(1 / (n_held_out + 1), 0.3, 60)
# First we draw the true rate of a threshold, given the cells that set it, then the flagged cells.
ranks = np.floor(rates * (n_held_out + 1))
true_rates = rng.beta(ranks, n_held_out + 1 - ranks, size=(2000, len(rates)))
low, high = np.quantile(rng.binomial(N_NEW, true_rates) / N_NEW, [0.05, 0.95], axis=0)

BLUE, VERMILION = "#0072B2", "#D55E00"  # safe for colour-blind readers

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
bins = np.linspace(0, 1, 21)
for p_values, color, hatch, name in (
    (p_defective, VERMILION, "//", "defective"),
    (p_new, BLUE, "", "functional, never seen"),
):
    shares = np.full(len(p_values), 100 / len(p_values))
    left.hist(p_values, bins, weights=shares, histtype="stepfilled", facecolor=color, alpha=0.35)
    left.hist(p_values, bins, weights=shares, histtype="step", color=color, hatch=hatch,
              linewidth=2, label=name)  # fmt: skip
left.axhline(5, color="black", linewidth=1, linestyle=":", label="spread evenly")
left.set(xlabel="p-value (small = abnormal)", ylabel="share of the cells in %", xlim=(0, 1))
left.set_title("How rare a cell is among functional ones", fontsize=13)
left.legend(framealpha=1, fontsize=11)

right.fill_between(100 * rates, 100 * low, 100 * high, color="0.85", label="9 in 10 draws")
right.plot([0, 30], [0, 30], color="black", linewidth=1, linestyle=":", label="as promised")
for p_values, color, style, name in (
    (p_defective, VERMILION, "--", "defective cells flagged"),
    (p_new, BLUE, "-", "functional cells flagged"),
):
    shares = [100 * np.mean(p_values <= rate) for rate in rates]
    right.plot(100 * rates, shares, style, color=color, linewidth=2.5, label=name)
right.set(
    xlabel="false alarms asked for, in %", ylabel="flagged, in %", xlim=(0, 30), ylim=(0, 100)
)
right.set_title("What is asked for, and what comes", fontsize=13)
right.legend(framealpha=1, fontsize=11, loc="center right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig("alarms.png", dpi=100)
