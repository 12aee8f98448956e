"""Cost of a coreset of `KNNDensity` or `WhitenedKNNDensity`: AUROC at several `max_samples`.

One class is normal, and gives the pre-trained features to fit on. Half of the scored images are of
that class, half of the others. Several seeds draw each size. Spearman's rank correlation compares
with the scores of all training samples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from harness import append_csv, find_classes, positive, print_circumstances, sample
from scipy.stats import spearmanr
from sklearn.metrics import pairwise_distances_argmin_min, roc_auc_score

from skanomaly_vit import KNNDensity, ViTFeatures, WhitenedKNNDensity
from skanomaly_vit.density import _coreset

DENSITIES = {"knn": KNNDensity, "whitened_knn": WhitenedKNNDensity}


def main() -> None:
    options = parse()
    print_circumstances(seed=0)
    if options.csv:
        options.csv.unlink(missing_ok=True)
    folders = find_classes(options.data)
    for name in options.normal_class:
        train = sample([options.data / "train" / name], options.train, 0)
        others = [folder for folder in folders["test"] if folder.name != name]
        test = sample([options.data / "test" / name], options.test // 2, 0)
        test += sample(others, options.test - len(test), 0)
        is_normal = np.arange(len(test)) < options.test // 2
        vit = ViTFeatures().fit(train[:1])
        features = vit.transform(train), vit.transform(test)
        for row in compare(*features, is_normal, options):
            row = {"normal_class": name, **row}
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if options.csv:
                append_csv(options.csv, row)
    if options.seconds:
        time_projection(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/<class>/ and test/<class>/")
    add("--normal-class", nargs="+", default=["airplane", "cat"])
    add("--density", choices=DENSITIES, default="knn", help="default: knn")
    add("--train", type=positive, default=1500, help="training images of a class")
    add("--test", type=positive, default=400, help="scored images")
    add("--sizes", type=positive, nargs="+", default=[750, 300, 150, 75, 30])
    add("--seeds", type=positive, default=5, help="draws of each size")
    add("--seconds", action="store_true", help="time the greedy choice with other projections")
    add("--csv", type=Path, help="write the rows to this file")
    return parser.parse_args()


def compare(train, test, is_normal, options):
    density = DENSITIES[options.density]
    full = density().fit(train).score_samples(test)
    yield row_of("all", len(train), [full], full, is_normal)
    for subsampling in ("random", "greedy"):
        for size in options.sizes:
            scores = [
                density(max_samples=size, subsampling=subsampling, random_state=seed)
                .fit(train)
                .score_samples(test)
                for seed in range(options.seeds)
            ]
            yield row_of(subsampling, size, scores, full, is_normal)


def row_of(subsampling, size, scores, full, is_normal):
    aurocs = [100 * roc_auc_score(is_normal, each) for each in scores]
    ranks = [spearmanr(each, full).statistic for each in scores]
    return {
        "subsampling": subsampling,
        "max_samples": size,
        "auroc": f"{np.mean(aurocs):.1f}",
        "auroc_deviation": f"{np.std(aurocs):.1f}",
        "rank_correlation": f"{np.mean(ranks):.3f}",
    }


def time_projection(options) -> None:
    """Seconds of a greedy choice of 1000 of 10,000 rows, and its reach."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10_000, 384)) @ rng.normal(size=(384, 384)) / 20
    for n_projected in (384, 128, 32):
        _coreset.N_PROJECTED = n_projected
        started = time.perf_counter()
        chosen = _coreset.greedy_k_center(rows, 1000, 0)
        seconds = time.perf_counter() - started
        reach = pairwise_distances_argmin_min(rows, rows[chosen])[1].max()
        print(f"projection to {n_projected}: {seconds:.1f} s, largest distance {reach:.2f}")


if __name__ == "__main__":
    main()
