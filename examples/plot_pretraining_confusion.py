"""
======================
Pre-training confusion
======================

If a backbone cannot tell two classes apart, no detector on top of it finds images of one class
among those of the other. The paper calls this *pre-training confusion* (Figure 4).
:func:`~skanomaly_vit.evaluation.pretraining_confusion` measures it for every pair of classes,
before you fit a detector, and needs nothing but images of the classes.

We take the handwritten digits that come with scikit-learn. The embedded backbone, tuned on small
natural images, has never seen a digit. For your own classes, pass a folder with a sub-folder of
images for each class::

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
# Images
# ------
# Sixty images of each class are enough for the measure.

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
# Features
# --------
# The backbone runs once. Half of its image size takes a quarter of the work.

features = ViTFeatures(image_size=56, n_jobs=2).fit_transform(images)

# %%
# Confusion of the backbone
# -------------------------
# Each class in turn is the normal one. A density of its features has to tell the other classes from
# new images of its own. The warning names the classes that a detector would miss.

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConfusionWarning)
    confusion = pretraining_confusion(features, labels, threshold=0.95)
for warning in caught:
    print(warning.message)

# %%
# The picture
# -----------
# t-SNE places images with similar features near each other. If two classes overlap there, the
# matrix has a dark cell for them: the density of the class in the row cannot tell the class in the
# column apart.

THUMBNAIL = 15  # pixels

places = TSNE(random_state=0).fit_transform(features)

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6.8), layout="constrained")
for image, place in zip(images[::2], places[::2], strict=True):  # all of them would overlap
    if isinstance(image, str):
        drawn = np.asarray(Image.open(image).convert("RGB").resize((32, 32)))
    else:  # black ink on a transparent ground, so that digits hide little
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
