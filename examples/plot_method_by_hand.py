"""
============================
Transformaly written by hand
============================

Transformaly [1]_ describes an image in two feature spaces of one frozen Vision Transformer, and
adds its scores in both. This page writes the method, from pixels to the score, in plain
torch, numpy and scikit-learn. In the end it compares its scores with those of
:class:`~skanomaly_vit.TransformalyDetector`, and stops if one differs by more than a millionth.
Read it before you change the method or port it to another framework.

A comment at each line gives the shape of its result. N is the number of images, T = 65 the number
of tokens of an image (a class token and 8 x 8 patches), C = 384 the number of channels of a token,
L = 11 the number of blocks, V = 4 that of views and D = 5 that of students. The images are solar
cells of the ELPV dataset [2]_.

.. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR
   Workshops 2022, arXiv:2112.04185. Section 3 describes the method.
.. [2] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# Images
# ------
# We learn from functional cells, and score others: functional and defective ones. The network takes
# RGB images of 112 x 112 pixels, normalised by the mean and the deviation of each colour.

from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.nn.functional import interpolate

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv

N_TRAIN, N_TEST = 100, 50
SIDE = 112  # pixels

cells = load_elpv()
mono = cells.module_type == "mono"
rng = np.random.default_rng(0)
functional, defective = (
    cells.images[rng.permutation(np.flatnonzero(mono & (cells.defect_probability == p)))]
    for p in (0, 1)
)
train, unseen = np.split(functional[: N_TRAIN + N_TEST], [N_TRAIN])
test = np.concatenate([unseen, defective[:N_TEST]])
is_defective = np.repeat([False, True], N_TEST)


def load(path):
    """Return the pixels of an image as the network takes them."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255  # [h, w, 3]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # [1, 3, h, w]
    image = interpolate(image, (SIDE, SIDE), mode="bicubic", antialias=True)[0]  # [3, 112, 112]
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]  # [3, 1, 1]
    std = torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]  # [3, 1, 1]
    return ((image.clamp(0, 1) - mean) / std).double()  # [3, 112, 112]


# %%
# Teacher
# -------
# The *teacher* is a Vision Transformer that was trained on many other images and stays as it is:
# here the small one that ships with the package. It turns an image into tokens :math:`h_0`, and its
# blocks compute :math:`h_j = B_j(h_{j-1})` for :math:`j = 1, \dots, L`. The paper takes the class
# token after the last norm as the vector of *pre-trained features* :math:`z_p` (section 3.1). Our
# default has four such *views*: the class token and, channel by channel, the largest patch, after
# the last block and after the one before. A small defect is in few patches, and the class token
# averages it away.
#
# We compute in double precision. In single precision, the usual one, this page and the detector
# round their sums in another order, and scores differ by about 1e-5 of their value.

weights = load_file(files("skanomaly_vit.weights") / "vit_small_patch14_embedded.safetensors")
vit = timm.create_model(
    "vit_small_patch14_dinov2",
    depth=11,
    img_size=SIDE,
    pretrained=True,
    pretrained_cfg_overlay={"state_dict": {name: w.float() for name, w in weights.items()}},
)
vit = vit.eval().double()


@torch.inference_mode()
def look(paths):
    """Return the views of images, and the tokens before and after each block."""
    images = torch.stack([load(path) for path in paths])  # [N, 3, 112, 112]
    class_token = vit.cls_token.expand(len(images), -1, -1)  # [N, 1, C]
    patches = vit.patch_embed(images)  # [N, T - 1, C]
    h = [torch.cat([class_token, patches], dim=1) + vit.pos_embed]  # h_0: [N, T, C]
    for block in vit.blocks:
        h.append(block(h[-1]))  # h_j = B_j(h_{j-1}): [N, T, C]
    last, earlier = (torch.nn.functional.layer_norm(h[j], h[j].shape[-1:]) for j in (-1, -2))
    z_p = [vit.norm(h[-1])[:, 0], earlier[:, 0]]  # class tokens: 2 x [N, C]
    z_p += [last[:, 1:].amax(dim=1), earlier[:, 1:].amax(dim=1)]  # largest patches: 2 x [N, C]
    return torch.stack(z_p).numpy(), torch.stack(h)  # [V, N, C], [L + 1, N, T, C]


# %%
# Students
# --------
# A *student* :math:`S_j` learns on normal images to imitate block :math:`B_j`. The paper trains a
# block of the same architecture by gradient descent; our default is a ridge regression, solved in
# one step. It predicts the residual that the block adds to a token from three inputs: the token
# itself, the mean token of its image (for what attention brings from elsewhere), and 1:
#
# .. math::
#
#    S_j(h) = h + [h, \bar h, 1] W_j, \qquad
#    W_j = (X^\top X + \lambda I_0)^{-1} X^\top (h_j - h_{j-1}).
#
# The rows of :math:`X` are the inputs :math:`[h_{j-1}, \bar h_{j-1}, 1]` of all tokens of all
# training images. The penalty :math:`\lambda` is 0.01 times the mean of the diagonal of
# :math:`X^\top X`; :math:`I_0` is the identity with a zero for the 1, which has no penalty.

ALPHA, D = 0.01, 5


def inputs(h):
    """Return what a student sees of tokens: each token, the mean token, and 1."""
    return torch.cat([h, h.mean(dim=1, keepdim=True).expand_as(h), torch.ones_like(h[..., :1])], -1)


def fit_student(before, after):
    """Return the weights of a student from the tokens before and after a block."""
    X = inputs(before).flatten(0, 1)  # [N * T, 2 * C + 1]
    residual = (after - before).flatten(0, 1)  # [N * T, C]
    gram = X.T @ X  # [2 * C + 1, 2 * C + 1]
    penalty = ALPHA * gram.diagonal()[:-1].mean()  # a number
    gram.diagonal()[:-1] += penalty
    return torch.linalg.solve(gram, X.T @ residual)  # W_j: [2 * C + 1, C]


z_p, h = look(train)  # [V, N, C], [L + 1, N, T, C]
students = [fit_student(h[j - 1], h[j]) for j in range(len(h) - D, len(h))]  # D x [2 * C + 1, C]

# %%
# Discrepancy
# -----------
# A student fails on an image unlike the normal ones. In the paper, its error is the mean over
# tokens and channels (section 3.2); ours is the mean over channels on the worst patch :math:`t`.
# The D errors are the second vector of features, :math:`z_f`:
#
# .. math:: z_f(x)_j = \max_t \operatorname{mean} (S_j(h_{j-1}) - h_j)_t^2.


def discrepancy(h):
    """Return the error of each student on each image."""
    errors = []
    for j, student in enumerate(students, start=len(h) - D):
        wrong = h[j - 1] + inputs(h[j - 1]) @ student - h[j]  # [N, T, C]
        of_patches = wrong.square().mean(dim=2)[:, 1:]  # [N, T - 1]
        errors.append(of_patches.amax(dim=1))  # [N]
    return torch.stack(errors, dim=1).numpy()  # [N, D]


z_f = discrepancy(h)  # [N, D]

# %%
# Densities
# ---------
# In each view and in the discrepancy space, a density of the normal images tells how likely an
# image is.
#
# In a view, we standardise the features by their mean and deviation on the training images, and
# whiten them halfway: we multiply them by :math:`\Sigma^{-1/4}`, with :math:`\Sigma` their
# covariance by Ledoit and Wolf, which has an inverse even from fewer images than features. An
# image is likely where its mean distance :math:`r` to the two nearest training images is small.
# (The paper whitens by a PCA, and fits a Gaussian.)
#
# .. math:: \log p_p(x) = -C \log r - \log N + \text{constant}
#
# In the discrepancy space, an error below the mean is no sign of an anomaly. An exponential for
# each block counts only the excess above the mean :math:`\mu_j`, in units of the deviation
# :math:`\sigma_j`. (The paper fits a Gaussian here too.)
#
# .. math:: \log p_f(x) = -\sum_j \max\left(\frac{z_j - \mu_j}{\sigma_j}, 0\right)
#           + \log\left(\mu_j + \sigma_j\right)


def whiten(learned):
    """Return a function that whitens features of a view halfway."""
    location, scale = learned.mean(axis=0), learned.std(axis=0)  # [C], [C]
    covariance, _ = ledoit_wolf((learned - location) / scale)  # [C, C]
    variances, axes = np.linalg.eigh(covariance + 1e-6 * np.eye(len(scale)))  # [C], [C, C]
    return lambda z: (z - location) / scale @ axes * variances**-0.25  # [N, C]


def log_p(u, learned):
    """Return log-likelihoods of whitened features, up to a constant."""
    r = np.sort(cdist(u, learned), axis=1)[:, :2].mean(axis=1)  # [N]
    return -u.shape[1] * np.log(r) - np.log(len(learned))  # [N]


def log_f(z, learned):
    """Return log-likelihoods of errors."""
    mean, deviation = learned.mean(axis=0), learned.std(axis=0)  # [D], [D]
    excess = np.maximum((z - mean) / deviation, 0)  # [N, D]
    return -(excess + np.log(mean + deviation)).sum(axis=1)  # [N]


# %%
# Score
# -----
# The paper adds the log-likelihoods as they are: the logarithm of the product of both. Our default
# first standardises each by mean :math:`m` and deviation :math:`d` of the training images, so that
# none outweighs the others. The densities know these images, and would overrate them; therefore we
# leave each one out, and take its log-likelihood by the other ones. The sum of the views is divided
# by its own deviation :math:`d`, so that they weigh as one space. The students know the training
# images too, and cannot forget one so cheaply: on new images, errors scatter more. Hence the second
# space counts half.
#
# .. math:: s(x) = \frac1d \sum_v \frac{\log p_v(x) - m_v}{d_v}
#           + \frac12 \cdot \frac{\log p_f(x) - m_f}{d_f}

z_p_test, h = look(test)  # [V, N, C], [L + 1, N, T, C]
z_f_test = discrepancy(h)  # [N, D]
everyone = np.arange(N_TRAIN)
spaces, known = np.zeros((2, len(test))), np.zeros(N_TRAIN)
for learned, new in zip(z_p, z_p_test, strict=True):
    map_ = whiten(learned)
    u = map_(learned)  # [N, C]
    left_out = [log_p(u[[i]], np.delete(u, i, axis=0))[0] for i in everyone]  # N numbers
    spaces[0] += (log_p(map_(new), u) - np.mean(left_out)) / np.std(left_out)  # [N]
    known += (left_out - np.mean(left_out)) / np.std(left_out)  # [N]
left_out = [log_f(z_f[[i]], np.delete(z_f, i, axis=0))[0] for i in everyone]  # N numbers
spaces[0] /= np.std(known)
spaces[1] = (log_f(z_f_test, z_f) - np.mean(left_out)) / np.std(left_out) / 2  # [N]
score = spaces.sum(axis=0)  # [N], higher = more normal

# %%
# Comparison with the detector
# ----------------------------
# By default the detector holds out a fifth of the images to set its threshold, and learns from the
# others. Here it learns from all, as we did.

detector = TransformalyDetector(backbone=vit, validation_fraction=0, random_state=0).fit(train)
difference = np.abs(score / detector.score_samples(test) - 1).max()
print(f"largest relative difference of a score: {difference:.1e}")
if difference > 1e-6:
    raise SystemExit("The scores differ from those of TransformalyDetector.")

# %%
# The picture
# -----------
# The left plot has a mark for each scored cell. All cells on the line have the same sum of both
# scores: one unseen functional cell in ten lies below it, and most defective ones do. Axes are
# linear from 0 to -10 and logarithmic beyond; therefore the line is bent. The right plot shows the
# error of each student, divided by its mean on the training cells. On defective cells, it grows
# with the depth of the block.

BLUE, VERMILION = "#0072B2", "#D55E00"  # safe for colour-blind readers

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.8), layout="constrained")
ratio = z_f_test / z_f.mean(axis=0)  # [N, D]
blocks = np.arange(len(h) - D, len(h))
for is_kind, color, marker, name in (
    (is_defective, VERMILION, "D", "defective"),
    (~is_defective, BLUE, "o", "functional, not in training"),
):
    left.scatter(*spaces[:, is_kind], color=color, marker=marker, s=45, alpha=0.7, label=name)
    low, middle, high = np.quantile(ratio[is_kind], [0.1, 0.5, 0.9], axis=0)  # [D] each
    right.fill_between(blocks, low, high, color=color, alpha=0.2, linewidth=0)
    right.plot(blocks, middle, f"-{marker}", color=color, linewidth=2, markersize=7, label=name)

total = np.quantile(score[~is_defective], 0.1)
x = np.linspace(total - 3, 3, 2000)
left.plot(x, total - x, color="black", linewidth=1.5, label=f"sum of both = {total:.0f}")
left.set_xscale("symlog", linthresh=10)
left.set_yscale("symlog", linthresh=10)
ends = 2 * spaces.min(), 4
left.set(xlim=ends, ylim=ends, xlabel="score in the pre-trained space")
left.set(ylabel="score in the discrepancy space")
left.set_title("Cells by their scores (higher = more normal)", fontsize=13)
left.legend(loc="lower right", framealpha=1, fontsize=11)
right.set_yscale("log")
right.axhline(1, color="black", linewidth=1, linestyle=":")
right.set(xlabel="block", ylabel="discrepancy / its mean in training", xticks=blocks)
right.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
right.set_yticks([], minor=True)
right.set_title("Discrepancy of each block: median and 80 % of the cells", fontsize=13)
right.legend(loc="upper left", framealpha=1, fontsize=11)
for axis in (left.xaxis, left.yaxis):
    axis.set_major_formatter("{x:g}")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig("method_by_hand.png", dpi=100)
