"""
=====================================
How many alarms are false: keep count
=====================================

Someone who is called by each alarm wants to choose how often that is for nothing. p-values say how
rare an image is among normal ones, and a threshold on them bounds the share of false alarms. We
check on images that the detector has never seen whether it keeps its promise, and what it costs in
defects that are missed.

The images are solar cells of the ELPV dataset [1]_.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# The cells
# ---------
# Functional ones in a random order: those to come are then like those that the threshold is set by.

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
# Half of the training cells are held out: the more, the finer the p-values, the smallest of which
# is one in ``n + 1``.

detector = TransformalyDetector(
    validation_fraction=0.5, image_size=56, n_blocks=5, n_jobs=2, random_state=0
).fit(train)
p_new, p_defective = detector.p_values(new), detector.p_values(defective)
n_held_out = len(detector.calibration_scores_)
print(f"{n_held_out} cells held out, the smallest p-value is {1 / (n_held_out + 1):.3f}")

# %%
# A whole batch
# -------------
# ``benjamini_hochberg`` bounds another share: that of false alarms among all alarms.

batch = np.concatenate([p_new, p_defective[:20]])
flagged = benjamini_hochberg(batch, 0.1)
print(
    f"of {flagged.sum()} flagged, {flagged[:N_NEW].sum()} are functional; "
    f"{20 - flagged[N_NEW:].sum()} of 20 defective ones are missed"
)

# %%
# The picture
# -----------
# On the left, p-values: those of functional cells are spread evenly, as they should be, those of
# defective ones are heaped at zero. On the right, what becomes of it for any rate of false alarms
# that is asked for. The grey band is where nine in ten draws of cells would lie if the promise is
# kept: a rate is promised on average, and both the cells that set the threshold and those that are
# counted are few.

rates = np.linspace(1 / (n_held_out + 1), 0.3, 60)
# The rate that a threshold really has, given the cells it was set by; then those that are counted.
ranks = np.floor(rates * (n_held_out + 1))
true_rates = rng.beta(ranks, n_held_out + 1 - ranks, size=(2000, len(rates)))
low, high = np.quantile(rng.binomial(N_NEW, true_rates) / N_NEW, [0.05, 0.95], axis=0)

BLUE, VERMILION = "#0072B2", "#D55E00"  # told apart by the colour-blind

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
