"""
===========
Grid search
===========

How many blocks should get a student, and how much variance should the PCA keep? With a few labelled
anomalies, a grid search answers such questions. The folds and scorers of scikit-learn are made for
classifiers, and mislead an outlier detector in three ways. This example shows each of them, and
what to use instead: :class:`~skanomaly_vit.model_selection.NormalOnlyKFold` and
:func:`~skanomaly_vit.model_selection.anomaly_scorer`.

The images are the solar cells of the ELPV dataset [1]_, as in :doc:`plot_solar_cells`, but few and
small, to keep the search short. The settings that win here need not win on other images.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# %%
# Imports
# -------

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from sklearn.base import clone
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, KFold

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer

try:
    import matplotlib.pyplot as plt
    from elpv_dataset.utils import load_dataset
except ImportError as error:
    raise SystemExit(
        f'This example needs {error.name}. Install: pip install "skanomaly-vit[demo]"'
    ) from error

# %%
# Solar cells
# -----------
# We keep monocrystalline cells whose label is certain. Labels may have any type: ``anomaly_label``
# names the one that marks anomalies.

N_FUNCTIONAL, N_DEFECTIVE = 80, 40

cells, probability, cell_type = load_dataset()
rng = np.random.default_rng(0)
functional, defective = (
    rng.permutation(np.flatnonzero((cell_type == "mono") & (probability == p))) for p in (0, 1)
)
X = cells[np.concatenate([functional[:N_FUNCTIONAL], defective[:N_DEFECTIVE]])]
y = np.repeat(["functional", "defective"], [N_FUNCTIONAL, N_DEFECTIVE])
is_defective = (y == "defective").astype(int)

# %%
# A trap: folds that train on anomalies
# -------------------------------------
# The labels are sorted, as labels often are. An integer ``cv`` does not shuffle or stratify for an
# outlier detector, and cuts them into runs. A fold that tests one kind only has no AUROC, and a
# fold that trains on defective cells teaches the detector that they are normal.

for name, folds in {
    "cv=3": KFold(3).split(X),
    "NormalOnlyKFold(3)": NormalOnlyKFold(3, anomaly_label="defective", random_state=0).split(X, y),
}.items():
    print(name)
    for train, test in folds:
        print(
            f"    trains on {is_defective[train].sum():2d} defective cells, tests "
            f"{is_defective[test].sum():2d} of them and {(1 - is_defective[test]).sum():2d} "
            "functional ones"
        )

# %%
# The search
# ----------
# By default (``refit=True``), a search ends with a fit of the best setting to all samples. This is
# another trap, because the defective cells are among them. So we pass ``refit=False``.
#
# The PCA belongs to the densities of the paper. The block students of the paper would take long, so
# we use ridge students. Through ``memory``, settings and folds share the outputs of the network,
# and the settings of a fold share their students. If you pass a folder of your own, the next search
# finds them there. ``contamination`` moves the threshold, which no scorer reads; it is high because
# these few cells cannot set a low one.

folder = TemporaryDirectory()

GRID = {"n_blocks": [1, 3, 5, 10], "pca_variance": [0.8, 0.9, 0.95, 0.99]}

detector = TransformalyDetector(
    recipe="paper",
    student="ridge",
    image_size=56,
    contamination=0.2,
    random_state=0,
    memory=folder.name,
)
search = GridSearchCV(
    detector,
    GRID,
    scoring=anomaly_scorer("roc_auc", anomaly_label="defective"),
    cv=NormalOnlyKFold(2, anomaly_label="defective", random_state=0),
    refit=False,
    n_jobs=2,
    error_score="raise",
)
start = perf_counter()
search.fit(X, y)
results = search.cv_results_
seconds = perf_counter() - start
print(f"{len(results['params'])} settings x {search.n_splits_} folds: {seconds:.0f} s", flush=True)
for i in np.argsort(results["rank_test_score"], kind="stable")[:3]:
    print(f"AUROC {100 * results['mean_test_score'][i]:.1f} %  {results['params'][i]}")

# %%
# A trap: an AUROC with the wrong sign
# ------------------------------------
# We fit the best setting to half of the functional cells, and compare two scorers on the others.
# scikit-learn's scorer expects high scores for the label 1. The scores of a detector are high for
# normal cells, so with 1 for defective cells it returns 1 - AUROC, without a warning.

train, test = next(NormalOnlyKFold(2, anomaly_label="defective", random_state=1).split(X, y))
best = clone(detector).set_params(**search.best_params_).fit(X[train])
upside_down = get_scorer("roc_auc")(best, X[test], is_defective[test])
upright = anomaly_scorer("roc_auc", anomaly_label="defective")(best, X[test], y[test])
print(f'scoring="roc_auc"         {100 * upside_down:.1f} %')
print(f"scoring=anomaly_scorer()  {100 * upright:.1f} %")

# %%
# The picture
# -----------
# Each mark is the mean AUROC of a setting. Its line runs from the worse fold to the better one.
# Where lines are longer than the distance between marks, chance ranks the settings.

folds = 100 * np.stack([results[f"split{i}_test_score"] for i in range(search.n_splits_)])
mean, low, high = folds.mean(axis=0), folds.min(axis=0), folds.max(axis=0)
print(
    f"Best and worst setting are {np.ptp(mean):.1f} points apart, the two folds of a setting "
    f"{(high - low).mean():.1f} on average"
)

LOOKS = zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D", strict=True)

figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
for i, (share, (color, marker)) in enumerate(zip(GRID["pca_variance"], LOOKS, strict=True)):
    those = [j for j, setting in enumerate(results["params"]) if setting["pca_variance"] == share]
    places = np.arange(len(those)) + 0.16 * (i - 1.5)
    ax.vlines(places, low[those], high[those], color=color, linewidth=2, alpha=0.6)
    ax.plot(places, mean[those], marker, color=color, markersize=9, label=f"{share:.0%}")
best = results["params"][mean.argmax()]
where = GRID["n_blocks"].index(best["n_blocks"])
where += 0.16 * (GRID["pca_variance"].index(best["pca_variance"]) - 1.5)
ax.annotate("best", (where, mean.max()), (0, 14), textcoords="offset points", ha="center",
            fontsize=12, fontweight="bold")  # fmt: skip
ax.set_xticks(range(len(GRID["n_blocks"])), GRID["n_blocks"])
ax.set_xlabel("blocks with a student (n_blocks)")
ax.set_ylabel("AUROC in %, mean and folds")
ax.set_title("Defective solar cells: what the search saw")
ax.legend(title="variance that the PCA keeps", ncols=4, loc="lower center", framealpha=1)
ax.margins(y=0.22)
ax.grid(axis="y", alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)

picture = Path("grid_search.png").resolve()
figure.savefig(picture, dpi=100)
print(f"picture {picture}")
