"""Draw the chart of docs/explanation/benchmarks.md, and print its table, from the CSV files here.

One row a data set, one mark a method: its mean AUROC over classes or kinds of defects, and over the
seeds that the default was measured with. A method that lacks one of these runs has no mark there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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


def mean_auroc(rows: pd.DataFrame, names: list[str], seeds: set[int]) -> float | None:
    """Mean over the runs of a method with these seeds; None if it lacks one of the default's."""
    run = [column for column in (*RUN, "dataset") if column in rows]
    own, default = (
        rows[rows["method"].isin(of_method) & rows["seed"].isin(seeds)].groupby([*run, "seed"])
        for of_method in (names, ["transformaly"])
    )
    if own.ngroups < default.ngroups:
        return None
    return 100 * own["auroc"].mean().mean()


def means_of(rows: pd.DataFrame) -> dict[str, float | None]:
    seeds = set(rows.loc[rows["method"] == "transformaly", "seed"])
    return {name: mean_auroc(rows, names, seeds) for name, (names, *_) in METHODS.items()}


def print_table(means: dict[str, dict[str, float | None]]) -> None:
    print("| AUROC in percent | " + " | ".join(METHODS) + " |")
    print("|---" * (len(METHODS) + 1) + "|")
    for data_set, found in means.items():
        best = max(value for value in found.values() if value is not None)
        cells = [
            "" if value is None else f"**{value:.1f}**" if value == best else f"{value:.1f}"
            for value in found.values()
        ]
        print(f"| {data_set} | " + " | ".join(cells) + " |")


def draw(means: dict[str, dict[str, float | None]], path: Path) -> None:
    # Text stays text, and the file does not change unless a figure does.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "chart", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    for place, found in enumerate(means.values()):
        values = [value for value in found.values() if value is not None]
        axes.plot([min(values), max(values)], [place] * 2, color="0.8", linewidth=2, zorder=1)
        for name, value in found.items():
            if value is not None:
                mark(axes, name, value, place)
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


def mark(axes: plt.Axes, name: str, value: float, place: int) -> None:
    _, colour, marker = METHODS[name]
    is_ours = name == "this package"
    axes.scatter(value, place, s=90 if is_ours else 42, color=colour, marker=marker, label=name,
                 zorder=3 if is_ours else 2)  # fmt: skip
    if is_ours:
        axes.annotate(f"{value:.1f}", (value, place), xytext=(0, 8), textcoords="offset points",
                      ha="center", color=colour, fontweight="bold")  # fmt: skip


if __name__ == "__main__":
    main()
