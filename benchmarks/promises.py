"""Measure whether the promised rate of false alarms holds, over random splits.

Every split draws normal images of a folder (``--images``) anew, to fit on and to calibrate with;
the others say how many of them are flagged. Each promise is measured with the detector's own
methods: plain images, images that are in the folder several times, new groups, `partial_fit`,
`calibrate`, and certificates. The table shows the mean rate over the splits and its 95 % confidence
interval. For a certificate it shows the share of splits whose rate is at most the target, and the
share that is to be expected of the number of images that measure it.

For the promise of groups, four images each make a lot, whose lamp changes brightness and colour.
The script keeps features in a temporary folder, so that the backbone sees each image once.

Without ``--images`` the script simulates scores, whose true rate is known, and applies the
functions of `skanomaly_vit.calibration`; for `partial_fit`, features and a Gaussian density.
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
from scipy.stats import beta, betabinom, norm, t

from skanomaly_vit import GaussianDensity, TransformalyDetector
from skanomaly_vit.calibration import conformal_threshold
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
    n_train : int
        Images, or lots, to fit on.
    """

    images: np.ndarray
    lit: np.ndarray
    make: Callable[[], TransformalyDetector]
    n_train: int


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


def simulate(rng: np.random.Generator, n: int) -> Iterator[Rates]:
    """All promises once, with simulated scores of `n` held-out images or lots."""
    scores, more = rng.standard_t(3, n), rng.standard_t(3, 200)
    yield true_rates("plain images", scores, None, lambda x: t.cdf(x, 3))
    for level in (0.05, 0.1):
        yield true_certificate("certificate", scores, level)
    both = np.concatenate([scores, more])
    yield true_rates("calibrate", both, None, lambda x: t.cdf(x, 3))
    yield true_certificate("certificate after calibrate", both, 0.01)
    for k in (2, 4):
        units = np.repeat(np.arange(n), k)
        name = f"every image {k} times"
        yield true_rates(name, np.repeat(scores, k), units, lambda x: t.cdf(x, 3))
    lots = np.repeat(np.arange(n), LOT)
    in_lots = rng.normal(size=n)[lots] + rng.normal(size=n * LOT)
    yield true_rates("new groups", in_lots, lots, lambda x: norm.cdf(x / np.sqrt(2)))
    threshold = conformal_threshold(in_lots, 0.1, groups=lots, confidence=CONFIDENCE)
    yield {("certificate of new groups", 0.1): (share_of_lots(threshold), CONFIDENCE)}
    first, second, held_out, new = (rng.normal(size=(m, 16)) for m in (120, 120, n, 2000))
    density = GaussianDensity().fit(first).partial_fit(second)
    found = np.sort(density.score_samples(new))
    yield true_rates(
        "partial_fit", density.score_samples(held_out), None,
        lambda x: np.searchsorted(found, x) / len(found),
    )  # fmt: skip


def true_rates(
    promise: str, scores: np.ndarray, units: np.ndarray | None, rate: Callable[[float], float]
) -> Rates:
    """Rates of the thresholds at all levels, by the distribution of the scores."""
    return {
        (promise, level): (float(rate(conformal_threshold(scores, level, groups=units))), np.nan)
        for level in LEVELS
    }


def true_certificate(promise: str, scores: np.ndarray, level: float) -> Rates:
    threshold = conformal_threshold(scores, level, confidence=CONFIDENCE)
    return {(promise, level): (float(t.cdf(threshold, 3)), CONFIDENCE)}


def share_of_lots(threshold: float) -> float:
    """Share of new lots of which an image scores below a threshold."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    none = norm.sf(threshold - nodes) ** LOT
    return float(1 - (weights * none).sum() / weights.sum())


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
    splits: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for number, measured in enumerate(run(args), 1):
        for rates in measured:
            for key, rate in rates.items():
                splits.setdefault(key, []).append(rate)
        if number % 50 == 0:
            print(f"{number} splits", flush=True)
            write(args, splits)
    write(args, splits)
    for (promise, level), rates in splits.items():
        report(promise, level, summarize(rates, level))


def run(args: argparse.Namespace) -> Iterator[Iterator[Rates]]:
    """The rates of each split."""
    if args.images is None:
        for split in range(args.splits):
            yield simulate(np.random.default_rng([args.seed, split]), args.held_out)
        return
    images = read(args.images, args.image_size)
    print(f"{len(images)} images", flush=True)
    with tempfile.TemporaryDirectory(prefix="promises-") as memory:
        study = prepare(args, images, memory)
        for split in range(args.splits):
            yield (
                rates
                for number, measure in enumerate(STUDIES)
                for rates in measure(study, np.random.default_rng([args.seed, split, number]))
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        default=None,
        help="folder of normal images; default: simulated scores",
    )
    add("--splits", type=positive, default=1000)
    add("--train", type=positive, default=500, help="images, or lots, to fit on; default: 500")
    add("--held-out", type=positive, default=100, help="how many are held out; default: 100")
    add("--image-size", type=positive, default=56)
    add("--feature-spaces", choices=("pretrained", "both"), default="pretrained")
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def read(folder: Path, size: int) -> np.ndarray:
    images = []
    for path in list_images(folder):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((size, size))))
    return np.stack(images)


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

    return Study(images, lit, make, args.train)


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
            "feature_spaces": args.feature_spaces if args.images else "scores",
            "promise": promise,
            "level": level,
        }
        figures = summarize(rates, level).items()
        merge_csv(args.output, case | {name: round(float(v), 5) for name, v in figures}, KEY)


if __name__ == "__main__":
    main()
