"""Measure whether the promised rate of false alarms holds, over random splits.

Every split draws normal images anew, to fit on and to calibrate with; the others say how many of
them are flagged. Each promise is measured with the detector's own methods: plain images, images
that are in the folder several times, new groups, `partial_fit`, `calibrate`, and certificates. The
table shows the mean rate over the splits and its 95 % confidence interval. For a certificate it
shows the share of splits whose rate is at most the target, and the share that is to be expected of
the number of images that measure it.

Images are those of a folder (``--images``), or simulated discs. Every image has a lot, whose lamp
changes brightness and colour; the lots count for the promise of groups alone. The script keeps
features in a temporary folder, so that the backbone sees each image once.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from PIL import Image
from scipy.stats import beta, betabinom

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import list_images
from skanomaly_vit.exceptions import CalibrationWarning

LEVELS = (0.01, 0.05, 0.1)
CONFIDENCE = 0.95
LOT = 4  # images of a lot
KEY = ("images", "feature_spaces", "promise", "level")

#: (promise, level) -> rate of false alarms in one split, and the share of certificates expected.
Rates: TypeAlias = dict[tuple[str, float], tuple[float, float]]


@dataclass(frozen=True)
class Study:
    """Normal images, and a split of each kind of them.

    Attributes
    ----------
    images, lit : ndarray of shape (n_images, size, size, channels), uint8
        As they are, and in the light of their lot; those of a lot follow each other.
    make : callable
        Makes an unfitted detector.
    n_train, n_held_out : int
        Images, or lots, to fit on, and how many of them are held out.
    """

    images: np.ndarray
    lit: np.ndarray
    make: Callable[[], TransformalyDetector]
    n_train: int
    n_held_out: int


def plain(study: Study, rng: np.random.Generator) -> Iterator[Rates]:
    """Plain images; certificates; images added to the calibration, some of them twice."""
    order = rng.permutation(len(study.images))
    train, more, rest = np.split(order, [study.n_train, study.n_train + 200])
    detector = study.make().fit(study.images[train])
    scores = detector.score_samples(study.images[rest])
    yield rates_of("plain images", detector, scores)
    yield certified("certificate", detector, scores, 0.05)
    yield certified("certificate", detector, scores, 0.1)
    detector.calibrate(study.images[more[:100]]).calibrate(study.images[more])
    yield rates_of("calibrate", detector, scores)
    yield certified("certificate after calibrate", detector, scores, 0.01)


def copies(study: Study, rng: np.random.Generator) -> Iterator[Rates]:
    """Every image twice in the folder, and four times."""
    train, test = draw(len(study.images), study.n_train, 1000, rng)
    for n_copies in (2, 4):
        detector = study.make().fit(study.images[np.repeat(train, n_copies)])
        scores = detector.score_samples(study.images[test])
        yield rates_of(f"every image {n_copies} times", detector, scores)


def new_groups(study: Study, rng: np.random.Generator) -> Iterator[Rates]:
    """Images of new lots, with the lots as groups and without."""
    lots = np.arange(len(study.lit)) // LOT
    train, test = draw(lots[-1] + 1, study.n_train, 250, rng)
    known, new = np.isin(lots, train), np.isin(lots, test)
    detector = study.make().fit(study.lit[known], groups=lots[known])
    scores = detector.score_samples(study.lit[new])
    yield rates_of("new groups", detector, scores)
    lowest = scores.reshape(-1, LOT).min(axis=1)
    yield certified("certificate of new groups", detector, lowest, 0.1)
    detector = study.make().fit(study.lit[known])
    yield rates_of("new groups, groups not given", detector, detector.score_samples(study.lit[new]))


def updated(study: Study, rng: np.random.Generator) -> Iterator[Rates]:
    """Images that come in two parts, and a few of the first ones again."""
    first, test = draw(len(study.images), study.n_train, 1000, rng)
    others = np.setdiff1d(np.arange(len(study.images)), np.concatenate([first, test]))
    second = np.concatenate([rng.permutation(others)[: study.n_train], first[:50]])
    detector = study.make().fit(study.images[first]).partial_fit(study.images[second])
    yield rates_of("partial_fit", detector, detector.score_samples(study.images[test]))


STUDIES = (plain, copies, new_groups, updated)


def draw(
    n: int, n_train: int, n_test: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(n)
    return order[:n_train], order[n_train : n_train + n_test]


def rates_of(promise: str, detector: TransformalyDetector, scores: np.ndarray) -> Rates:
    """Share of new normal images that thresholds at all levels flag."""
    rates = {}
    for level in LEVELS:
        detector.set_threshold(target_fpr=level)
        rates[promise, level] = float(np.mean(scores < detector.offset_)), np.nan
    return rates


def certified(
    promise: str, detector: TransformalyDetector, scores: np.ndarray, level: float
) -> Rates:
    """Share of new normal images, or groups, that a certified threshold flags."""
    detector.set_threshold(target_fpr=level, confidence=CONFIDENCE)
    units = detector.calibration_units_
    n = len(detector.calibration_scores_ if units is None else np.unique(units))
    return {
        (promise, level): (float(np.mean(scores < detector.offset_)), expected(n, level, scores))
    }


def expected(n: int, level: float, scores: np.ndarray) -> float:
    """Share of splits whose rate, among so many images, is at most the level: a little less sure.

    The rate of the k-th of n exchangeable scores among m others is beta-binomial.
    """
    k = np.arange(1, n + 1)
    k = k[beta.cdf(level, k, n + 1 - k) >= CONFIDENCE][-1]
    m = len(scores)
    return float(betabinom.cdf(np.floor(level * m + 1e-9), m, k, n + 1 - k))


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    warnings.simplefilter("error", CalibrationWarning)
    images = read(args.images, args.image_size) if args.images else simulated(args)
    print(f"{len(images)} images of {images.shape[1:]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="promises-") as memory:
        study = prepare(args, images, memory)
        splits: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for split in range(args.splits):
            for number, measure in enumerate(STUDIES):
                for rates in measure(study, np.random.default_rng([args.seed, split, number])):
                    for key, rate in rates.items():
                        splits.setdefault(key, []).append(rate)
            if (split + 1) % 50 == 0:
                print(f"{split + 1} splits", flush=True)
                write(args, splits)
    write(args, splits)
    for (promise, level), rates in splits.items():
        report(promise, level, summarize(rates, level))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, default=None, help="folder of normal images; default: simulated")
    add("--splits", type=positive, default=1000)
    add("--train", type=positive, default=500, help="images, or lots, to fit on; default: 500")
    add("--held-out", type=positive, default=100, help="how many are held out; default: 100")
    add("--image-size", type=positive, default=28)
    add("--feature-spaces", choices=("pretrained", "both"), default="pretrained")
    add("--simulated", type=positive, default=5000, help="simulated images; default: 5000")
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def read(folder: Path, size: int) -> np.ndarray:
    images = []
    for path in list_images(folder):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((size, size))))
    return np.stack(images)


def simulated(args: argparse.Namespace) -> np.ndarray:
    """Discs of one tint on grey, a little different each."""
    rng, size, n = np.random.default_rng(args.seed), args.image_size, args.simulated
    y, x = np.mgrid[:size, :size] / size
    center = rng.normal(0.5, 0.06, (n, 2, 1, 1))
    radius = np.hypot(y - center[:, 0], x - center[:, 1])
    disc = 1 / (1 + np.exp(size * (radius - rng.gamma(20, 0.0125, (n, 1, 1)))))
    tint = np.array([150, 120, 90]) * rng.normal(1, 0.1, (n, 1, 1, 1))
    images = 60 + disc[..., None] * tint + rng.normal(0, 6, (n, size, size, 3))
    return images.clip(0, 255).astype(np.uint8)


def prepare(args: argparse.Namespace, images: np.ndarray, memory: str) -> Study:
    # Folders are often in the order of time, which would make lots of like images.
    rng = np.random.default_rng([args.seed, 1])
    images = images[rng.permutation(len(images))[: len(images) // LOT * LOT]]
    gains = 1 + rng.normal(0, 0.15, (len(images) // LOT, 1, 1, 3))
    lit = (images * np.repeat(gains, LOT, axis=0)).clip(0, 255).astype(np.uint8)

    def make() -> TransformalyDetector:
        return TransformalyDetector(
            image_size=args.image_size, feature_spaces=args.feature_spaces, random_state=0,
            validation_fraction=args.held_out / args.train, memory=memory,
        )  # fmt: skip

    return Study(images, lit, make, args.train, args.held_out)


def summarize(splits: list[tuple[float, float]], level: float) -> dict[str, float]:
    rates, share = np.array(splits).T
    error = 1.96 * rates.std(ddof=1) / np.sqrt(len(rates))
    return {
        "rate": rates.mean(), "low": rates.mean() - error, "high": rates.mean() + error,
        "kept": np.mean(rates <= level), "expected": share.mean(), "splits": len(rates),
    }  # fmt: skip


def report(promise: str, level: float, figures: dict[str, float]) -> None:
    line = (
        f"{promise:<30} {100 * level:3.0f} %: {100 * figures['rate']:5.2f} % "
        f"({100 * figures['low']:.2f} to {100 * figures['high']:.2f})"
    )
    if not np.isnan(figures["expected"]):
        line += (
            f", at most that in {100 * figures['kept']:.1f} % of splits "
            f"({100 * figures['expected']:.1f} % expected)"
        )
    print(line, flush=True)


def write(
    args: argparse.Namespace, splits: dict[tuple[str, float], list[tuple[float, float]]]
) -> None:
    for (promise, level), rates in splits.items():
        case = {
            "images": args.images.name if args.images else "simulated",
            "feature_spaces": args.feature_spaces, "promise": promise, "level": level,
        }  # fmt: skip
        figures = summarize(rates, level).items()
        merge_csv(args.output, case | {name: round(float(v), 5) for name, v in figures}, KEY)


if __name__ == "__main__":
    main()
