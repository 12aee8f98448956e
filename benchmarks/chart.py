"""Draw the chart of docs/explanation/benchmarks.md, and print its table, from the CSV files here.

One row a data set, one mark a method: its mean AUROC over classes or kinds of defects, and over the
seeds that the default was measured with. A method that was run with some of these seeds only has a
hollow mark, and * in the table; one that lacks classes has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

RESULTS = Path(__file__).parent / "results"

#: Name in the chart -> names in the CSV files, colour, marker.
METHODS = {
    "this package": (["transformaly"], "#0b5cad", "o"),
    "Gaussian, class token": (["gaussian"], "#d1600f", "s"),
    "neighbours, class token (DN2)": (["dn2"], "#2a8a4a", "^"),
    "neighbours, patches (PatchCore)": (["patchcore"], "#8a3fa0", "D"),
    "neighbours, patches (plain)": (["patch-neighbors"], "#8a3fa0", "P"),
    "LOF, class token": (["lof", "pyod-lof"], "#6b6b6b", "v"),
}

#: What tells the runs of a method apart, beside its name and the seed.
RUN = ["class", "module", "probability", "kind"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="SVG or PNG")
    output = parser.parse_args().output
    means = {name: means_of(rows) for name, rows in rows_of_data_sets().items()}
    print_table(means)
    if output is not None:
        draw(means, output)


def rows_of_data_sets() -> dict[str, pd.DataFrame]:
    """Row of the chart -> figures that it shows."""
    cifar, fashion, cells, tiles, tiny = (
        pd.read_csv(RESULTS / f"{name}.csv", dtype={"class": str})
        for name in ("cifar10", "fashion-mnist", "solar-cells", "magnetic-tiles", "tiny-defects")
    )
    tiles = tiles[(tiles["backbone"] == "embedded") & (tiles["image_size"] == "own")]
    return {
        "CIFAR-10, one class normal": cifar[cifar["setting"] == "unimodal"],
        "CIFAR-10, nine normal": cifar[cifar["setting"] == "multimodal"],
        "Fashion-MNIST, one class normal": fashion[fashion["setting"] == "unimodal"],
        "Fashion-MNIST, nine normal": fashion[fashion["setting"] == "multimodal"],
        "solar cells": cells[~cells["equalized"]],
        "magnetic tiles": tiles,
        "tiny defects on cells": tiny[tiny["dataset"].str.startswith("elpv")],
        "tiny defects on tiles": tiny[~tiny["dataset"].str.startswith("elpv")],
    }


class Mean(NamedTuple):
    """Mean AUROC in percent, and whether it covers all seeds of the default."""

    value: float
    is_complete: bool


def mean_auroc(rows: pd.DataFrame, names: list[str], seeds: set[int]) -> Mean | None:
    """Mean over the runs of a method; None without any seed that has all classes or kinds."""
    run = [column for column in (*RUN, "dataset") if column in rows]
    own = rows[rows["method"].isin(names) & rows["seed"].isin(seeds)]
    n_wanted = rows[rows["method"] == "transformaly"].groupby(run).ngroups
    by_seed = own.groupby("seed")
    complete = {seed for seed, of_seed in by_seed if of_seed.groupby(run).ngroups == n_wanted}
    if not complete:
        return None
    return Mean(100 * own[own["seed"].isin(complete)]["auroc"].mean(), complete == seeds)


def means_of(rows: pd.DataFrame) -> dict[str, Mean | None]:
    seeds = set(rows.loc[rows["method"] == "transformaly", "seed"])
    return {name: mean_auroc(rows, names, seeds) for name, (names, *_) in METHODS.items()}


def print_table(means: dict[str, dict[str, Mean | None]]) -> None:
    print("| AUROC in percent | " + " | ".join(METHODS) + " |")
    print("|---" * (len(METHODS) + 1) + "|")
    for data_set, found in means.items():
        best = max(mean.value for mean in found.values() if mean is not None)
        cells = ["" if mean is None else cell(mean, best) for mean in found.values()]
        print(f"| {data_set} | " + " | ".join(cells) + " |")


def cell(mean: Mean, best: float) -> str:
    text = f"**{mean.value:.1f}**" if mean.value == best else f"{mean.value:.1f}"
    return text if mean.is_complete else f"{text} *"


def draw(means: dict[str, dict[str, Mean | None]], path: Path) -> None:
    # Text stays text, and the file does not change unless a figure does.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "chart", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    for place, found in enumerate(means.values()):
        values = [mean.value for mean in found.values() if mean is not None]
        axes.plot([min(values), max(values)], [place] * 2, color="0.8", linewidth=2, zorder=1)
        for name, mean in found.items():
            if mean is not None:
                mark(axes, name, mean, place)
    axes.set_yticks(range(len(means)), means)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC in percent, higher is better")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    ordered = {name: known[name] for name in METHODS if name in known}
    figure.legend(ordered.values(), ordered.keys(), loc="outside upper center", ncols=3,
                  frameon=False)  # fmt: skip
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def mark(axes: plt.Axes, name: str, mean: Mean, place: int) -> None:
    _, colour, marker = METHODS[name]
    is_ours = name == "this package"
    axes.scatter(mean.value, place, s=90 if is_ours else 42, edgecolors=colour, marker=marker,
                 facecolors=colour if mean.is_complete else "white", label=name,
                 zorder=3 if is_ours else 2)  # fmt: skip
    if is_ours:
        axes.annotate(f"{mean.value:.1f}", (mean.value, place), xytext=(0, 8), ha="center",
                      textcoords="offset points", color=colour, fontweight="bold")  # fmt: skip


if __name__ == "__main__":
    main()
