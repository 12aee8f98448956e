"""Compare a grid search with `memory` with plain fits, in one run.

The grid has 5 numbers of blocks x 4 PCA variances, with 3 folds: each trains on normal images of
one class, and tests on other images of that class and anomalies.

- *plain fits*: three fits of the default setting, one on each fold's training images, no `memory`;
- *search*: `GridSearchCV` over the grid with `memory` in an empty folder;
- *again*: the same search in a new process, with the cache of the first one;
- *plain search*: with `--plain`, the search without `memory`, to see that every score is the same.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
from harness import (
    DataError,
    choose_classes,
    find_classes,
    not_negative,
    positive,
    print_circumstances,
    sample,
    split_classes,
)
from sklearn.model_selection import GridSearchCV

from skanomaly_vit import DiskCache, TransformalyDetector
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer

GRID = {"n_blocks": [1, 3, 5, 8, 10], "pca_variance": [0.8, 0.85, 0.9, 0.95]}


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        X, y = draw_images(args)
    except DataError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print_circumstances(args.seed)
    print(f"{(y == 1).sum()} normal images, {(y == -1).sum()} anomalies, n_jobs={args.n_jobs}\n")
    with tempfile.TemporaryDirectory() as folder:
        measure(args, X, y, folder)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="train/<class>/, test/<class>/")
    add("--normal-class", required=True, metavar="NAME")
    add("--normal", type=positive, default=600, help="normal images; default: 600")
    add("--anomalies", type=positive, default=300, help="default: 300")
    add("--student", choices=["ridge", "block"], default="ridge", help="default: ridge")
    add("--n-jobs", type=positive, default=1, help="of the search; default: 1")
    add("--plain", action="store_true", help="search without memory too, which takes long")
    add("--seed", type=not_negative, default=0, help="default: 0")
    return parser


def draw_images(args: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    folders = find_classes(args.data)["train"]
    (name,) = choose_classes([args.normal_class], folders)
    normal, abnormal = split_classes(folders, "unimodal", name)
    X = sample(normal, args.normal, args.seed) + sample(abnormal, args.anomalies, args.seed)
    return X, np.repeat([1, -1], [args.normal, args.anomalies])


def measure(args: argparse.Namespace, X: list[str], y: np.ndarray, folder: str) -> None:
    plain = fit_plainly(args, X, y)
    print(f"{'side':<14} {'seconds':>8} {'of plain fits':>14} {'of search':>10}")
    print(f"{'plain fits':<14} {plain:8.1f}", flush=True)
    first, scores = in_new_process(args, X, y, folder)
    print(f"{'search':<14} {first:8.1f} {first / plain:14.2f}", flush=True)
    again, _ = in_new_process(args, X, y, folder)
    print(f"{'again':<14} {again:8.1f} {again / plain:14.2f} {again / first:10.3f}", flush=True)
    if args.plain:
        seconds, without = in_new_process(args, X, y, None)
        print(
            f"{'plain search':<14} {seconds:8.1f} {seconds / plain:14.2f} {seconds / first:10.1f}"
        )
        print(f"largest difference of a score to the search that remembers: "
              f"{np.abs(without - scores).max():.1e}")  # fmt: skip
    with DiskCache(folder) as cache:
        print(f"cache: {cache.size / 1e6:.0f} MB, {cache.size / 1e6 / len(X):.2f} MB an image")


def fit_plainly(args: argparse.Namespace, X: list[str], y: np.ndarray) -> float:
    splits = NormalOnlyKFold(3, random_state=args.seed).split(X, y)
    folds = [[X[i] for i in train] for train, _ in splits]
    start = perf_counter()
    for images in folds:
        TransformalyDetector(student=args.student, random_state=args.seed).fit(images)
    return perf_counter() - start


def in_new_process(
    args: argparse.Namespace, X: list[str], y: np.ndarray, folder: str | None
) -> tuple[float, np.ndarray]:
    """Run in a new process, which inherits nothing that a search holds in memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(search, args, X, y, folder).result()


def search(
    args: argparse.Namespace, X: list[str], y: np.ndarray, folder: str | None
) -> tuple[float, np.ndarray]:
    detector = TransformalyDetector(student=args.student, random_state=args.seed, memory=folder)
    start = perf_counter()
    grid = GridSearchCV(
        detector,
        GRID,
        scoring=anomaly_scorer("roc_auc", anomaly_label=-1),
        cv=NormalOnlyKFold(3, random_state=args.seed),
        n_jobs=args.n_jobs,
        refit=False,
        error_score="raise",
    ).fit(X, y)
    seconds = perf_counter() - start
    return seconds, np.array([grid.cv_results_[f"split{i}_test_score"] for i in range(3)])


if __name__ == "__main__":
    main()
