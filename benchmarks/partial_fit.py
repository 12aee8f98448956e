"""Compare `partial_fit` with a fit of all images: ranks, accuracy, false alarms, seconds, bytes.

Every draw fits on `--first` images of a class, adds `--more`, and fits anew to all of them. *Rank*
is Spearman's correlation with the scores of that fit, on new images of which half are normal;
*seeds* is that of a fit of all images that holds out others of them (the most that can be asked).
*Flagged* is the share of the new normal images that are flagged, at an accepted share of 10 %.
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
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.exceptions import CalibrationWarning

COLUMNS: Columns = {
    "class": ("<10", ""),
    "draw": (">5", ""),
    "model": ("<12", ""),
    "rank": (">6", ".3f"),
    "auroc": (">6", ".1f"),
    "flagged": (">8", ".3f"),
    "seconds": (">8", ".1f"),
    "file_mb": (">8", ".1f"),
}
KEY = ("class", "draw", "model", "first", "more")


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    print_titles(COLUMNS)
    warnings.simplefilter("ignore", CalibrationWarning)
    rows = [
        row
        for name in args.normal_class
        for draw in range(args.draws)
        for row in run(args, name, draw)
    ]
    for model in ("first", "partial_fit", "all", "seeds"):
        of_model = [row for row in rows if row["model"] == model]
        numbers = [name for name in COLUMNS if name not in ("class", "draw", "model")]
        means = {name: float(np.mean([row[name] for row in of_model])) for name in numbers}
        print_row(COLUMNS, {"class": "mean", "draw": len(of_model), "model": model, **means})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/<class>/ and test/<class>/")
    add("--normal-class", action="append", required=True)
    add("--first", type=positive, default=100, help="images of fit; default: 100")
    add("--more", type=positive, default=100, help="images of partial_fit; default: 100")
    add("--test", type=positive, default=400, help="images to score; default: 400")
    add("--draws", type=positive, default=3)
    add("--seed", type=not_negative, default=0)
    add("--memory", type=Path, default=None, help="folder for tokens: 1.24 MB an image")
    add("--csv", type=Path, default=None, help="write the rows to this file")
    return parser.parse_args()


def run(args: argparse.Namespace, name: str, draw: int) -> list[dict[str, Any]]:
    """Rows of one draw of images."""
    folders, seed = find_classes(args.data), 1000 * args.seed + draw
    train = sample(
        split_classes(folders["train"], "unimodal", name)[0], args.first + args.more, seed
    )
    sides = split_classes(folders["test"], "unimodal", name)
    test = [image for side in sides for image in sample(side, args.test // 2, seed)]
    is_abnormal = np.repeat([0, 1], args.test // 2)

    def make(random_state: int) -> TransformalyDetector:
        return TransformalyDetector(
            contamination=0.1, memory=args.memory, random_state=random_state
        )

    make(0).fit(train).score_samples(test)  # decodes and, with --memory, stores tokens
    first, seconds = timed(make(0).fit, train[: args.first])
    scores, measured = {}, {}

    def note(model: str, detector: TransformalyDetector, seconds: float) -> None:
        scores[model] = detector.score_samples(test)
        flagged = float(np.mean(scores[model][: args.test // 2] < detector.offset_))
        measured[model] = {"flagged": flagged, "seconds": seconds, "file_mb": size_of(detector)}

    note("first", first, seconds)
    note("partial_fit", *timed(first.partial_fit, train[args.first :]))
    note("all", *timed(make(0).fit, train))
    note("seeds", *timed(make(1).fit, train))
    rows = []
    for model, found in scores.items():
        row = {
            "class": name,
            "draw": draw,
            "model": model,
            "rank": spearmanr(found, scores["all"])[0],
            "auroc": 100 * roc_auc_score(is_abnormal, -found),
            **measured[model],
        }
        print_row(COLUMNS, row)
        rows.append(row)
        if args.csv:
            rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            merge_csv(args.csv, rounded | {"first": args.first, "more": args.more}, KEY)
    return rows


def timed(function: Any, images: list[str]) -> tuple[TransformalyDetector, float]:
    start = perf_counter()
    detector = function(images)
    return detector, perf_counter() - start


if __name__ == "__main__":
    main()
