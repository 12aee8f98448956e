"""
=====================
Large images in tiles
=====================

A detector resizes an image to the small square of its backbone, so that small defects disappear. If
you have large images (scans of wafers, aerial views, a line camera), cut them into tiles, fit on
normal tiles, and score every place.

The image is one that comes with scikit-learn: a temple above a lake. We take its right part, with
sky, water and trees, as normal, and ask which places of the whole image look different.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Tiles
# -----
# Tiles are squares of 64 pixels, one every 16 pixels. They overlap, so that an abnormal place lies
# well inside some of them.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from skanomaly_vit import TransformalyDetector

SIDE, STEP, BORDER = 64, 16, 370

picture = load_sample_image("china.jpg")
windows = np.lib.stride_tricks.sliding_window_view(picture, (SIDE, SIDE), axis=(0, 1))
windows = windows[::STEP, ::STEP].transpose(0, 1, 3, 4, 2)
n_rows, n_columns = windows.shape[:2]
tiles = windows.reshape(-1, SIDE, SIDE, 3)
left = np.tile(np.arange(n_columns) * STEP, n_rows)  # of each tile, in pixels
print(f"{len(tiles)} tiles, {n_rows} rows of {n_columns}")

# %%
# Fit on normal tiles
# -------------------
# Neighbouring tiles share most of their pixels. A held-out tile, which sets the threshold, should
# not overlap with tiles that the detector learns from. Therefore ``groups`` holds out whole
# stretches of the image.

is_normal = left >= BORDER
detector = TransformalyDetector(image_size=56, n_blocks=5, n_jobs=2, random_state=0)
detector.fit(tiles[is_normal], groups=left[is_normal] // SIDE)

# %%
# A score for every place
# -----------------------
# Up to sixteen tiles cover a place; it gets the mean of their values. The scores of very abnormal
# tiles lie far below all others, so we average the logarithm of the distance to the best score.

scores = detector.score_samples(tiles)
total, count = np.zeros(picture.shape[:2]), np.zeros(picture.shape[:2])
for score, (row, column) in zip(scores, np.ndindex(n_rows, n_columns), strict=True):
    place = np.s_[row * STEP : row * STEP + SIDE, column * STEP : column * STEP + SIDE]
    total[place] += np.log1p(scores.max() - score)
    count[place] += 1
oddness = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
threshold = np.log1p(scores.max() - detector.offset_)

# %%
# The picture
# -----------
# The detector has learned from the part right of the dashed line. The outline on the map is the
# threshold: the detector would flag the places inside. It also flags the trees on the left, though
# by less: they stand in the sun, and the trees on the right do not.

covered = np.s_[: count.any(axis=1).sum(), : count.any(axis=0).sum()]
picture, oddness = picture[covered], oddness[covered]

figure, (above, below) = plt.subplots(2, 1, figsize=(8, 10.5), layout="constrained")
above.imshow(picture)
above.axvline(BORDER, color="white", linewidth=3)
above.axvline(BORDER, color="black", linewidth=1.5, linestyle="--")
above.set_title("A picture, whose right part is taken for normal", fontsize=14)

below.imshow(picture.mean(axis=2), cmap="gray", vmax=255)
floor = np.quantile(oddness, 0.3)
alpha = 0.7 * np.clip((oddness - floor) / (oddness.max() - floor), 0, 1)
drawn = below.imshow(oddness, cmap="autumn_r", vmin=floor, alpha=alpha)
below.contour(oddness, [threshold], colors="black", linewidths=3)
below.contour(oddness, [threshold], colors="white", linewidths=1.5)
below.set_title("How odd each place is", fontsize=14)
bar = figure.colorbar(drawn, ax=below, shrink=0.8, ticks=[])
bar.set_label("higher = more abnormal", fontsize=11)
for ax in (above, below):
    ax.set(xticks=[], yticks=[])
figure.savefig("large_image.png", dpi=100)
