"""Spread of scores in sample, left out and new, and AUROC by the weight of the second space.

One class is normal. In each feature space, the deviation of three kinds of scores: of the training
images (*in sample*), of the same images with each left out of the density (*left out*), and of new
normal images (*new*). Fusion divides by the second; densities leave an image out, but the students,
whose errors are the discrepancy space, have learned from it.

The AUROC is that of the sum of both spaces, each divided by its deviation left out, with several
weights of the discrepancy space; `in sample` is the sum with both deviations in sample.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from harness import append_csv, find_classes, not_negative, positive, print_circumstances, sample
from sklearn.metrics import roc_auc_score

from skanomaly_vit import ExcessDensity, GaussianDensity, TransformalyDetector

#: Space -> parameters of a detector of it alone: a Gaussian on the class token, and mean errors.
SPACES = {
    "pretrained": {
        "feature_spaces": "pretrained",
        "views": "pooled",
        "density": GaussianDensity(shrinkage="ledoit_wolf"),
    },
    "discrepancy": {
        "feature_spaces": "discrepancy",
        "pooling": "mean",
        "n_blocks": 10,
        "density": ExcessDensity(),
    },
}


def main() -> None:
    options = parse()
    print_circumstances(options.seed)
    if options.csv:
        options.csv.unlink(missing_ok=True)
    folders = find_classes(options.data)
    for name in options.normal_class:
        train = sample([options.data / "train" / name], options.train, options.seed)
        others = [folder for folder in folders["test"] if folder.name != name]
        test = sample([options.data / "test" / name], options.test // 2, options.seed)
        test += sample(others, options.test - len(test), options.seed)
        is_normal = np.arange(len(test)) < options.test // 2
        row = {
            "normal_class": name,
            "train": len(train),
            **measure(train, test, is_normal, options),
        }
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if options.csv:
            append_csv(options.csv, row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/<class>/ and test/<class>/")
    add("--normal-class", nargs="+", default=["airplane", "cat", "truck"])
    add("--train", type=positive, default=500, help="training images of a class")
    add("--test", type=positive, default=1000, help="scored images, half of them normal")
    add("--weights", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.125])
    add("--seed", type=not_negative, default=0, help="default: 0")
    add("--memory", help="folder in which features and students are kept for other runs")
    add("--csv", type=Path, help="write the rows to this file")
    return parser.parse_args()


def measure(train, test, is_normal, options):
    row, left_out, seen, new = {}, {}, {}, {}
    for space, parameters in SPACES.items():
        shared = {"random_state": options.seed, "memory": options.memory}
        detector = TransformalyDetector(**parameters, **shared).fit(train)
        learned = np.delete(np.arange(len(train)), detector.validation_indices_)
        ((location, left_out[space]),) = detector.fusion_.values()
        seen[space], new[space] = (
            detector.score_samples(images) * left_out[space] + location
            for images in ([train[i] for i in learned], test)
        )
        row[f"{space}_in_sample"] = f"{seen[space].std():.1f}"
        row[f"{space}_left_out"] = f"{left_out[space]:.1f}"
        row[f"{space}_new"] = f"{new[space][is_normal].std():.1f}"
    in_sample = [new[space] / seen[space].std() for space in SPACES]
    row["auroc_in_sample"] = f"{100 * roc_auc_score(is_normal, sum(in_sample)):.1f}"
    first, second = (new[space] / left_out[space] for space in SPACES)
    for weight in options.weights:
        auroc = 100 * roc_auc_score(is_normal, first + weight * second)
        row[f"auroc_weight_{weight:g}"] = f"{auroc:.1f}"
    return row


if __name__ == "__main__":
    main()
