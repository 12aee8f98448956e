"""
===============================================
Which classes will be missed: a look beforehand
===============================================

Where a backbone sees two classes alike, one of them cannot be found as an anomaly among images of
the other, whatever is learned on top. The paper calls this *pre-training confusion* and shows it
in its Figure 4. :func:`~skanomaly_vit.evaluation.pretraining_confusion` measures it for every pair
of classes, before a detector is fitted, from images of the classes alone.

We take the handwritten digits that come with scikit-learn: an embedded backbone, tuned on small
natural images, has never seen a digit. Pass a folder with a sub-folder of images for each class to
look at your own::

    python examples/plot_pretraining_confusion.py path/to/classes
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

from skanomaly_vit import ViTFeatures
from skanomaly_vit.datasets import load_image_folder
from skanomaly_vit.evaluation import pretraining_confusion
from skanomaly_vit.exceptions import ConfusionWarning

# %%
# The images
# ----------
# Sixty of each class are enough for the measure.

N_PER_CLASS = 60

if len(sys.argv) > 1:
    data = load_image_folder(sys.argv[1], n_per_class=N_PER_CLASS, random_state=0)
    images, labels = data.images, data.labels
else:
    digits = load_digits()
    labels = digits.target.astype(str)
    first = np.concatenate([np.flatnonzero(labels == c)[:N_PER_CLASS] for c in np.unique(labels)])
    images, labels = digits.images[first] / 16, labels[first]  # shades of grey, 0 to 16

# %%
# Their features
# --------------
# One pass of the backbone. Half of its image size is a quarter of the work.

features = ViTFeatures(image_size=56, n_jobs=2).fit_transform(images)

# %%
# What the backbone confuses
# --------------------------
# Each class in turn is taken for normal, and a density of its features has to tell the others
# from new images of its own. The warning names the classes that would be missed.

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConfusionWarning)
    confusion = pretraining_confusion(features, labels, threshold=0.95)
for warning in caught:
    print(warning.message)

# %%
# The picture
# -----------
# t-SNE draws images with like features near to each other. Classes that overlap there have a dark
# cell in the matrix: the density of the row's class does not tell the column's class apart.

THUMBNAIL = 15  # pixels

places = TSNE(random_state=0).fit_transform(features)

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6.8), layout="constrained")
for image, place in zip(images[::2], places[::2], strict=True):  # all would hide each other
    if isinstance(image, str):
        drawn = np.asarray(Image.open(image).convert("RGB").resize((32, 32)))
    else:  # black ink on no ground, so that digits hide little of each other
        drawn = np.zeros((*image.shape, 4))
        drawn[..., 3] = image
    thumbnail = OffsetImage(drawn, zoom=THUMBNAIL / len(drawn))
    left.add_artist(AnnotationBbox(thumbnail, place, frameon=False))
left.set(xticks=[], yticks=[])
left.set(xlim=(places[:, 0].min() - 3, places[:, 0].max() + 3))
left.set(ylim=(places[:, 1].min() - 3, places[:, 1].max() + 3))
left.set_title("Images by their pre-trained features (t-SNE)", fontsize=14)

shown = right.imshow(100 * confusion.auroc, cmap="inferno", vmax=100)
for row, column in np.ndindex(confusion.auroc.shape):
    value = 100 * confusion.auroc[row, column]
    if row != column:
        is_light = value > (shown.norm.vmin + 100) / 2
        right.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=11,
                   color="black" if is_light else "white")  # fmt: skip
ticks = range(len(confusion.classes))
right.set_xticks(ticks, confusion.classes)
right.set_yticks(ticks, confusion.classes)
right.set(xlabel="abnormal class", ylabel="normal class")
right.set_title("How well each pair is told apart", fontsize=14)
figure.colorbar(shown, ax=right, label="AUROC in %", shrink=0.85)
figure.savefig("pretraining_confusion.png", dpi=100)
