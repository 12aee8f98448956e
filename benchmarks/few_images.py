"""Measure what few images are worth: accuracy, and calibration by a share of them or by all.

Every split draws `--train` images of a class, fits with `calibration="split"` and `"cross"`, and
scores new images, of which half are normal. *Flagged* is the share of new normal images with a
p-value up to a level, the mean over the splits with its standard error; *found* is that of the
abnormal ones. *Smallest* is the smallest p-value there can be.

`--memory` keeps tokens (1.24 MB an image): the backbone sees each image once, and seconds leave it
out.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from harness import (
    Columns,
    find_classes,
    merge_csv,
    not_negative,
    positive,
    print_circumstances,
    print_row,
    print_titles,
    sample,
    size_of,
    split_classes,
)
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.exceptions import CalibrationWarning

LEVELS = (0.05, 0.1, 0.2)
COLUMNS: Columns = {
    "class": ("<10", ""),
    "train": (">5", ""),
    "calibration": ("<11", ""),
    "splits": (">6", ""),
    "auroc": (">6", ".1f"),
    "auroc_sd": (">8", ".1f"),
    "smallest": (">8", ".3f"),
    **{f"flagged_{level:g}": (">12", ".3f") for level in LEVELS},
    **{f"error_{level:g}": (">10", ".3f") for level in LEVELS},
    **{f"found_{level:g}": (">10", ".3f") for level in LEVELS},
    "seconds": (">7", ".1f"),
    "file_mb": (">7", ".1f"),
}
KEY = ("class", "train", "calibration", "splits", "image_size")


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    print_titles(COLUMNS)
    warnings.simplefilter("ignore", CalibrationWarning)
    for name in args.normal_class:
        for n_train in args.train:
            splits = [measure(args, name, n_train, split) for split in range(args.splits)]
            for calibration in args.calibration:
                report(args, name, n_train, calibration, [split[calibration] for split in splits])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/<class>/ and test/<class>/")
    add("--normal-class", action="append", required=True)
    add("--train", type=positive, nargs="+", default=[60], help="images to fit on; default: 60")
    add("--calibration", nargs="+", default=["split", "cross"])
    add("--test", type=positive, default=400, help="images to score; default: 400")
    add("--splits", type=positive, default=20)
    add("--image-size", type=positive, default=None, help="pixels; default: the backbone's")
    add("--seed", type=not_negative, default=0)
    add("--memory", type=Path, default=None, help="folder for tokens: 1.24 MB an image")
    add("--csv", type=Path, default=None, help="write the rows to this file")
    return parser.parse_args()


def measure(
    args: argparse.Namespace, name: str, n_train: int, split: int
) -> dict[str, dict[str, float]]:
    """Figures of one split, for each calibration."""
    folders, seed = find_classes(args.data), 1000 * args.seed + split
    train = sample(split_classes(folders["train"], "unimodal", name)[0], n_train, seed)
    sides = split_classes(folders["test"], "unimodal", name)
    # The same new images for each split, so that `--memory` has them.
    test = [image for side in sides for image in sample(side, args.test // 2, args.seed)]
    return {
        calibration: figures(
            TransformalyDetector(
                calibration=calibration,
                image_size=args.image_size,
                memory=args.memory,
                random_state=split,
            ),
            train,
            test,
        )
        for calibration in args.calibration
    }


def figures(detector: TransformalyDetector, train: list[str], test: list[str]) -> dict[str, float]:
    start = perf_counter()
    detector.fit(train)
    seconds = perf_counter() - start
    scores, p = detector.score_samples(test), detector.p_values(test)
    n_normal = len(test) // 2
    found: dict[str, float] = {
        "auroc": 100 * float(roc_auc_score(np.arange(len(test)) >= n_normal, -scores)),
        "smallest": 1 / (len(detector.calibration_scores_) + 1),
        "seconds": seconds,
        "file_mb": size_of(detector),
    }
    for level in LEVELS:
        is_flagged = p <= level + 1e-9
        found[f"flagged_{level:g}"] = float(is_flagged[:n_normal].mean())
        found[f"found_{level:g}"] = float(is_flagged[n_normal:].mean())
    return found


def report(
    args: argparse.Namespace,
    name: str,
    n_train: int,
    calibration: str,
    splits: list[dict[str, float]],
) -> None:
    row: dict[str, Any] = {"class": name, "train": n_train, "calibration": calibration}
    row["splits"] = len(splits)
    for figure in splits[0]:
        row[figure] = float(np.mean([split[figure] for split in splits]))
    row["auroc_sd"] = float(np.std([split["auroc"] for split in splits], ddof=1))
    for level in LEVELS:
        rates = [split[f"flagged_{level:g}"] for split in splits]
        row[f"error_{level:g}"] = float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
    print_row(COLUMNS, row)
    if args.csv:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        figures_of_row = {name: rounded[name] for name in COLUMNS}
        merge_csv(args.csv, figures_of_row | {"image_size": args.image_size}, KEY)


if __name__ == "__main__":
    main()
