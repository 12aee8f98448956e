"""Print the tables of docs/explanation/benchmarks.md from the CSV files that compare.py wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

SETTINGS = ["unimodal", "multimodal"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="CSV")
    parser.add_argument("--metric", default="auroc", help="a column; default: auroc")
    parser.add_argument("--by-class", action="store_true", help="each class too, not only means")
    parser.add_argument("--paired", metavar="METHOD", default=None,
        help="only its seeds and classes, and only methods that have them all")  # fmt: skip
    args = parser.parse_args()
    for file in args.files:
        rows = pd.read_csv(file, dtype={"class": str})
        for name, of_dataset in rows.groupby("dataset"):
            if args.paired:
                of_dataset = pair(of_dataset, args.paired)
            print(f"\n{name}: {args.metric} in percent\n")
            print_means(of_dataset, args.metric)
            if args.by_class:
                print_classes(of_dataset, args.metric)


def pair(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Runs that `method` has, of the methods that have all of them."""
    run = ["setting", "seed", "class"]
    runs = rows.loc[rows["method"] == method, run]
    rows = rows.merge(runs, on=run)
    return rows[rows.groupby("method")["method"].transform("size") == len(runs)]


def print_means(rows: pd.DataFrame, metric: str) -> None:
    """Print a row per method, in the order of the file; a mark means an incomplete evaluation."""
    n_classes = rows["class"].nunique()
    print("| method | " + " | ".join(SETTINGS) + " | seeds |")
    print("|---" * (len(SETTINGS) + 2) + "|")
    for method in rows["method"].unique():
        of_method = rows[rows["method"] == method]
        cells = [
            mean_cell(of_method[of_method["setting"] == setting], metric, n_classes)
            for setting in SETTINGS
        ]
        print(f"| {method} | " + " | ".join([*cells, str(of_method["seed"].nunique())]) + " |")


def mean_cell(rows: pd.DataFrame, metric: str, n_classes: int) -> str:
    if rows.empty:
        return ""
    of_seeds = 100 * rows.groupby("seed")[metric].mean()
    spread = f" ± {of_seeds.std():.1f}" if len(of_seeds) > 1 else ""
    missing = (
        "" if rows["class"].nunique() == n_classes else f" ({rows['class'].nunique()} classes)"
    )
    return f"{of_seeds.mean():.1f}{spread}{missing}"


def print_classes(rows: pd.DataFrame, metric: str) -> None:
    for setting, of_setting in rows.groupby("setting", sort=False):
        print(f"\n{setting}, class by class\n")
        table = 100 * of_setting.pivot_table(
            index="method", columns="class", values=metric, sort=False
        )
        print("| method | " + " | ".join(table.columns) + " |")
        print("|---" * (len(table.columns) + 1) + "|")
        for method, values in table.iterrows():
            cells = ["" if pd.isna(value) else f"{value:.1f}" for value in values]
            print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
