"""
======================
Defects in solar cells
======================

A solar module that is run backwards glows in the infrared; cracks and dead areas stay dark. You
have images of cells that work, and want to find the defective ones among new cells.

This example fits :class:`~skanomaly_vit.TransformalyDetector` on functional monocrystalline cells
of the ELPV dataset [1]_. The detector sees no defective cell in training. The backbone is the small
Vision Transformer that ships with the package, so nothing is downloaded.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# %%
# Imports
# -------
# The package ``elpv-dataset`` holds the images. ``pip install "skanomaly-vit[demo]"`` installs it.

import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from skanomaly_vit import ProgressBar, TransformalyDetector
from skanomaly_vit.datasets import load_elpv

try:
    import elpv_dataset  # noqa: F401, the images
    import matplotlib.pyplot as plt
except ImportError as error:
    raise SystemExit(
        f'This example needs {error.name}. Install: pip install "skanomaly-vit[demo]"'
    ) from error

# %%
# Solar cells
# -----------
# The data set has 2,624 grey images of 300 x 300 pixels. Each has a type and a probability of a
# defect: 0, 1/3, 2/3 or 1. We keep the monocrystalline cells whose label is certain, train on 350
# functional ones, and score the others.

N_TRAIN = 350

cells = load_elpv()
mono = cells.module_type == "mono"
functional = np.flatnonzero(mono & (cells.defect_probability == 0))
defective = np.flatnonzero(mono & (cells.defect_probability == 1))

functional = np.random.default_rng(0).permutation(functional)
train, held_out = functional[:N_TRAIN], functional[N_TRAIN:]
print(
    f"{len(train)} functional cells to train on; to score: {len(held_out)} functional ones that "
    f"were held out, {len(defective)} defective ones",
    flush=True,
)

# %%
# Fit
# ---
# ``fit`` holds out a fifth of the training cells and sets the threshold on them. ``contamination``
# is the share of normal cells that we accept as false alarms.

detector = TransformalyDetector(contamination=0.05, n_jobs=2, random_state=0)
if sys.stdout.isatty():
    detector.set_callbacks(ProgressBar())

start = perf_counter()
detector.fit(cells.images[train])
print(f"fit              {perf_counter() - start:.0f} s", flush=True)

# %%
# Score
# -----
# Scores are sums of standardised scores in both spaces: higher = more normal.

test = np.concatenate([held_out, defective])
is_defective = np.isin(test, defective)

start = perf_counter()
scores = detector.score_samples(cells.images[test])
seconds = perf_counter() - start
flagged = scores < detector.offset_

print(f"scoring          {len(test) / seconds:.1f} images/s")
print(f"AUROC            {100 * roc_auc_score(is_defective, -scores):.1f} %")
print(
    f"flagged          {100 * flagged[~is_defective].mean():.1f} % of held-out functional cells "
    f"(aim: {100 * detector.contamination:.0f} %), "
    f"{100 * flagged[is_defective].mean():.1f} % of defective cells"
)

# %%
# A simple baseline
# -----------------
# Cells with a certain defect are an easy case, because many are simply darker. So we compare the
# detector with the mean brightness of a cell.

brightness = np.array([np.asarray(Image.open(path)).mean() for path in cells.images[test]])
print(
    f"AUROC, baseline  {100 * roc_auc_score(is_defective, -brightness):.1f} % from mean brightness "
    "alone (dark = defective)\n"
    "                 This is an easy task: cells whose label is uncertain are left out."
)

# %%
# The picture
# -----------
# The most normal and the most abnormal of the scored cells, each with its score and its label;
# where the abnormal ones are so, from yellow at 2 to red at 8 standard deviations of normal
# patches; and the worst mistakes, which tell what a threshold costs.

N_COLUMNS = 7
COLORS = {"functional": "#0072B2", "defective": "#D55E00"}  # safe for colour-blind readers


def draw_cells(figure, positions, title, maps=None):
    """Draw a row of cells, given as positions in `test`, with maps over them."""
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    for column, (ax, cell) in enumerate(zip(figure.subplots(1, N_COLUMNS), positions, strict=True)):
        label = "defective" if is_defective[cell] else "functional"
        ax.imshow(Image.open(cells.images[test[cell]]), cmap="gray", vmin=0, vmax=255)
        if maps is not None:
            share = np.clip((maps[column] - 2) / 6, 0, 1)
            ax.imshow(share, cmap="autumn_r", vmin=0, vmax=1, alpha=0.75 * share)
        verdict = "flagged" if flagged[cell] else "passed"
        ax.set_title(f"{scores[cell]:,.1f}, {verdict}\n{label}", fontsize=11, color=COLORS[label])
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(color=COLORS[label], linewidth=3)


order = np.argsort(scores)
worst = order[:N_COLUMNS]
false_alarms = order[~is_defective[order]][:3]
missed = order[is_defective[order]][: -(N_COLUMNS - 2) : -1]
figure = plt.figure(figsize=(12, 10), layout="constrained")
figure.suptitle(f"Solar cells by score (below {detector.offset_:,.1f} = flagged)", fontsize=16)
rows = figure.subfigures(4, 1)
draw_cells(rows[0], order[::-1][:N_COLUMNS], "Most normal")
draw_cells(rows[1], worst, "Most abnormal")
draw_cells(
    rows[2], worst, "Where they are abnormal", detector.anomaly_map(cells.images[test[worst]])
)
draw_cells(
    rows[3], [*false_alarms, *missed], "Mistakes: the worst false alarms, and the worst misses"
)

picture = Path("solar_cells.png").resolve()
figure.savefig(picture, dpi=100)
print(f"picture          {picture}")
command = Path(sys.executable).parent / "skanomaly"
print("next             your own images, from the shell, with the environment of this example:")
print(f"                 {command} fit parts/good -o parts.skanomaly")
