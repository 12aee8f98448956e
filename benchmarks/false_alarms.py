"""Measure the rate of false alarms against the accepted rate.

Every split draws normal images anew: some to fit on (the detector holds out a fifth of them), and
others to flag or not. *Conformal* is the detector's threshold; *percentile* is a frequent
alternative, the quantile of the scores of the training images. The table shows the mean over the
splits, its 95 % confidence interval, and the share of splits that flag more than twice the level.
*Drift* is the share of splits in which `drift` cries wolf at a level. With `--planted SHARE`, the
script counts the planted anomalies that `audit` ranks among its first 10 %.

`--memory` keeps tokens (1.24 MB per image): the backbone sees each image once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit.calibration import conformal_threshold, drift_test

LEVELS = (0.01, 0.05, 0.1)
KEY = ("dataset", "n_train", "n_blocks", "rule", "level")


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    normal, anomalies = load(args)
    splits = [measure(args, normal, split) for split in range(args.splits)]
    for rule, level in splits[0]:
        rates = np.array([rates[rule, level] for rates in splits])
        report(args, rule, level, rates)
    if args.planted:
        plant(args, normal, anomalies)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="elpv", metavar="PATH",
        help="elpv: solar cells of one type; or train/<class>/")  # fmt: skip
    add("--normal-class", default="mono", help="class, or type of module; default: mono")
    add("--train", type=positive, default=300, help="images to fit on; default: 300")
    add("--test", type=positive, default=200, help="images to flag; default: 200")
    add("--splits", type=positive, default=200)
    add("--n-blocks", type=positive, default=10)
    add("--planted", type=float, default=0.0, help="share of anomalies to plant; default: none")
    add("--seed", type=not_negative, default=0)
    add("--memory", type=Path, default=None)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Paths of normal images and of anomalies."""
    if args.data == "elpv":
        cells = datasets.load_elpv()
        of_type = cells.module_type == args.normal_class
        certain = np.isclose(cells.defect_probability, 1)
        return cells.images[of_type & (cells.y == 1)], cells.images[of_type & certain]
    data = datasets.load_image_folder(args.data)
    is_normal = data.labels == args.normal_class
    return data.images[is_normal], data.images[~is_normal]


def make(args: argparse.Namespace, seed: int) -> TransformalyDetector:
    return TransformalyDetector(
        n_blocks=args.n_blocks, contamination=0.1, memory=args.memory, random_state=seed, n_jobs=2
    )


def measure(
    args: argparse.Namespace, normal: np.ndarray, split: int
) -> dict[tuple[str, float], float]:
    order = np.random.default_rng([args.seed, split]).permutation(len(normal))
    train, test = order[: args.train], order[args.train : args.train + args.test]
    detector = make(args, split).fit(normal[train])
    learned = np.delete(train, detector.validation_indices_)
    known, scores = (detector.score_samples(normal[part]) for part in (learned, test))
    rates = {}
    for level in LEVELS:
        calibration = detector.calibration_scores_
        if level * (len(calibration) + 1) >= 1:
            threshold = conformal_threshold(calibration, level)
            rates["conformal", level] = float(np.mean(scores < threshold))
        rates["percentile", level] = float(np.mean(scores < np.quantile(known, level)))
        drifted = drift_test(calibration, scores, anomaly_share=0.05).p_value <= level
        rates["drift", level] = float(drifted)
    return rates


def report(args: argparse.Namespace, rule: str, level: float, rates: np.ndarray) -> None:
    error = 1.96 * rates.std(ddof=1) / np.sqrt(len(rates))
    figures = {
        "mean": rates.mean(), "low": rates.mean() - error, "high": rates.mean() + error,
        "twice": np.mean(rates > 2 * level), "splits": len(rates),
    }  # fmt: skip
    print(f"{rule:<10} {level:5.2f}: {100 * figures['mean']:5.1f} % "
          f"({100 * figures['low']:.1f} to {100 * figures['high']:.1f}), "
          f"over twice: {100 * figures['twice']:.0f} % of splits", flush=True)  # fmt: skip
    write(args, rule, level, figures)


def plant(args: argparse.Namespace, normal: np.ndarray, anomalies: np.ndarray) -> None:
    """Print the share of planted anomalies among the first images of an audit."""
    rng = np.random.default_rng(args.seed)
    n_planted = round(args.planted * args.train)
    X = np.concatenate(
        [rng.permutation(normal)[: args.train - n_planted], rng.permutation(anomalies)[:n_planted]]
    )
    order = make(args, args.seed).audit(X).order
    first = order[: len(X) // 10]
    found = float(np.mean(first >= args.train - n_planted) * len(first) / n_planted)
    print(f"audit: {100 * found:.0f} % of {n_planted} planted anomalies in the first 10 %")
    write(args, "audit", args.planted, {"mean": found, "low": found, "high": found,
                                        "twice": 0, "splits": 1})  # fmt: skip


def write(args: argparse.Namespace, rule: str, level: float, figures: dict[str, Any]) -> None:
    name = "elpv" if args.data == "elpv" else Path(args.data).name
    case = {"dataset": f"{name}-{args.normal_class}", "n_train": args.train,
            "n_blocks": args.n_blocks, "rule": rule, "level": level}  # fmt: skip
    rounded = {name: round(float(value), 5) for name, value in figures.items()}
    merge_csv(args.output, case | rounded, KEY)


if __name__ == "__main__":
    main()
