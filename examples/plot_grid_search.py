"""
=========================================
Choosing the number of blocks and the PCA
=========================================

How many blocks should get a student, and how much variance should the PCA keep? Someone who has a
few labelled anomalies can ask them, by a grid search. scikit-learn's own folds and scorers are
made for classifiers, and lead an outlier detector astray in three ways; we show each, and what to
use instead: :class:`~skanomaly_vit.model_selection.NormalOnlyKFold` and
:func:`~skanomaly_vit.model_selection.anomaly_scorer`.

The images are the solar cells of the ELPV dataset [1]_, as in :doc:`plot_solar_cells`, but few and
small, to keep the search short. Do not take the settings that win here for good ones elsewhere.

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
# The cells
# ---------
# Monocrystalline cells, functional or defective beyond doubt. Labels may be of any kind: what
# marks anomalies is said by ``anomaly_label``.

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
# The labels are sorted, as labels often are. An integer ``cv`` cuts them into runs, since an
# outlier detector is no classifier. Folds that test one kind only have no AUROC, and those that
# train on defective cells take these for normal.

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
# With ``refit=True``, the default, a search fits the best setting to all samples in the end: a
# trap once more, as the defective cells are among them. So we say ``refit=False``.
#
# The PCA belongs to the densities of the paper; its students would take long, and ridge students
# do as well. With ``memory``, settings and folds share what the network gave for a cell, and
# settings of one fold share their students. A folder of your own would still know them tomorrow.
# ``contamination`` moves the threshold, which no scorer looks at; so few cells could not set a low
# one.

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
# A trap: an AUROC that is upside down
# ------------------------------------
# We fit the best setting to half of the functional cells, and let two scorers look at the rest.
# scikit-learn's takes 1 for the label that a high score speaks for. A detector's score is high
# where a cell is normal, so with 1 for defective cells it gives 1 - AUROC, and says nothing.

train, test = next(NormalOnlyKFold(2, anomaly_label="defective", random_state=1).split(X, y))
best = clone(detector).set_params(**search.best_params_).fit(X[train])
upside_down = get_scorer("roc_auc")(best, X[test], is_defective[test])
upright = anomaly_scorer("roc_auc", anomaly_label="defective")(best, X[test], y[test])
print(f'scoring="roc_auc"         {100 * upside_down:.1f} %')
print(f"scoring=anomaly_scorer()  {100 * upright:.1f} %")

# %%
# The picture
# -----------
# A mark for each setting, the mean AUROC of its folds, on a line from the worse fold to the better.
# Where the lines are longer than the marks lie apart, most of what ranks the settings is chance.

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
