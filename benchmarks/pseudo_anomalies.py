"""Measure whether pseudo-anomalies rank settings as real anomalies do.

For each class, the detector learns from normal images. The script rates each setting of a grid
twice: by `pseudo_anomaly_scorer` on other normal images, as someone without labelled anomalies
would, and by the AUROC on a test set with real anomalies. The agreement is Spearman's correlation
of both ratings over the settings. The value of the choice is the real AUROC of the setting that
pseudo-anomalies choose, next to those of the best, the median and the default setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    Columns,
    DataError,
    append_csv,
    choose_classes,
    find_classes,
    not_negative,
    positive,
    print_circumstances,
    print_row,
    print_titles,
    sample,
    split_classes,
)
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from skanomaly_vit import GaussianDensity, KNNDensity, TransformalyDetector, __version__
from skanomaly_vit.model_selection import anomaly_scorer, pseudo_anomaly_scorer

DENSITIES = {"gaussian": GaussianDensity, "knn": KNNDensity}
N_BLOCKS = [1, 5, 10]
PCA_VARIANCES = [0.8, 0.9, 0.99]
DEFAULT = ("gaussian", "both", 10, 0.9)  # density, feature_spaces, n_blocks, pca_variance
KINDS = ["patch_shuffle", "cut_paste", "rotation"]
COLUMNS: Columns = {
    "class": ("<14", ""),
    "train": (">6", ""),
    "pseudo": (">7", ""),
    "test": (">6", ""),
    "all": (">6", ".2f"),
    **{kind: (f">{len(kind) + 1}", ".2f") for kind in KINDS},
    "chosen": (">7", ".1f"),
    "best": (">6", ".1f"),
    "median": (">7", ".1f"),
    "default": (">8", ".1f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.data is None and not args.solar:
        parser.error("nothing to measure: give --data PATH, --solar or both")
    try:
        tasks = [*class_tasks(args), *solar_tasks(args)]
        print_header(args)
        rows = [run(args, *task) for task in tasks]
    except DataError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    if len(rows) > 1:
        print_row(COLUMNS, mean_row(rows))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="holds train/<class>/ and test/<class>/, folders of images",
    )
    add(
        "--normal-class",
        action="append",
        metavar="NAME",
        help="the class of --data that is normal; repeatable; default: all, one after the other",
    )
    add("--solar", action="store_true", help="solar cells too (package elpv-dataset)")
    add("--train", type=positive, default=500, help="training images of a class; default: 500")
    add(
        "--pseudo",
        type=positive,
        default=200,
        help="other normal images, to make pseudo-anomalies of; default: 200",
    )
    add("--test", type=positive, default=600, help="test images, half of them normal; default: 600")
    add("--image-size", type=positive, help="pixels; default: the backbone's own")
    add("--seed", type=not_negative, default=0, help="default: 0")
    add("--jobs", type=int, default=1, help="threads that decode images, -1 = all; default: 1")
    add("--csv", type=Path, metavar="FILE", help="append the rating of each setting to FILE")
    return parser


# Tasks: name, training images, normal images, test images, test labels

Task = tuple[str, Sequence[Any], Sequence[Any], Sequence[Any], np.ndarray]


def class_tasks(args: argparse.Namespace) -> Iterator[Task]:
    """Tasks in which one class of --data is normal, and the others are not."""
    if args.data is None:
        return
    folders = find_classes(args.data)
    for name in choose_classes(args.normal_class or ["all"], folders["train"]):
        normal, _ = split_classes(folders["train"], "unimodal", name)
        images = sample(normal, args.train + args.pseudo, args.seed)
        normal, abnormal = split_classes(folders["test"], "unimodal", name)
        test_normal = sample(normal, args.test - args.test // 2, args.seed)
        test_abnormal = sample(abnormal, args.test // 2, args.seed)
        y = signs(len(test_normal), len(test_abnormal))
        yield name, images[: args.train], images[args.train :], test_normal + test_abnormal, y


def solar_tasks(args: argparse.Namespace) -> Iterator[Task]:
    """The task in which functional monocrystalline solar cells are normal, defective ones not."""
    if not args.solar:
        return
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise DataError('--solar needs: pip install "skanomaly-vit[demo]"') from error
    cells, probability, cell_type = load_dataset()
    rng = np.random.default_rng(args.seed)
    functional, defective = (
        rng.permutation(np.flatnonzero((cell_type == "mono") & (probability == p))) for p in (0, 1)
    )
    # There are 588 functional cells: if the arguments ask for more, all sets shrink alike.
    wanted = np.cumsum([args.train, args.pseudo, args.test - args.test // 2])
    ends = (wanted * min(1, len(functional) / wanted[-1])).astype(int)
    train, pseudo, held_out = np.split(functional[: ends[-1]], ends[:-1])
    defective = defective[: args.test // 2]
    test = np.concatenate([held_out, defective])
    yield (
        "solar cells",
        cells[train],
        cells[pseudo],
        cells[test],
        signs(len(held_out), len(defective)),
    )


def signs(n_normal: int, n_abnormal: int) -> np.ndarray:
    return np.repeat([1, -1], [n_normal, n_abnormal])


# Settings of the detector that share one pass of the network


class Embedder:
    """Both feature spaces of images, each image embedded once.

    Densities, PCA and the number of blocks do not change the network, and students do not depend
    on each other. So one fit serves all settings.
    """

    def __init__(self, args: argparse.Namespace, train: Sequence[Any]) -> None:
        self.detector = TransformalyDetector(
            n_blocks=max(N_BLOCKS),
            image_size=args.image_size,
            n_jobs=args.jobs,
            random_state=args.seed,
        ).fit(train)
        learned = np.ones(len(train), dtype=bool)
        learned[self.detector.validation_indices_] = False
        self.train = tuple(space[learned] for space in self._embed(train))
        self._known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, X: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        keys = [key_of(image) for image in X]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            features, errors = self._embed([X[i] for i in new.values()])
            self._known.update(zip(new, zip(features, errors, strict=True), strict=True))
        features, errors = zip(*(self._known[key] for key in keys), strict=True)
        return np.stack(features), np.stack(errors)

    def _embed(self, X: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        return (
            self.detector.features_.transform(X).astype(np.float64),
            self.detector.distillation_.transform(X).astype(np.float64),
        )


def key_of(image: Any) -> bytes:
    content = image.encode() if isinstance(image, str) else np.ascontiguousarray(image).tobytes()
    return blake2b(content, digest_size=16).digest()


class Setting:
    """The detector with other parameters, on computed features."""

    def __init__(
        self,
        embedder: Embedder,
        density: str,
        feature_spaces: str,
        n_blocks: int | None,
        pca_variance: float | None,
    ) -> None:
        self.embedder, self.n_blocks, features, errors = embedder, n_blocks, *embedder.train
        self.pretrained = self.discrepancy = None
        if feature_spaces != "discrepancy":
            pca = PCA(pca_variance, whiten=True, svd_solver="full")
            self.pretrained = make_pipeline(pca, DENSITIES[density]()).fit(features)
        if feature_spaces != "pretrained":
            self.discrepancy = DENSITIES[density]().fit(errors[:, -n_blocks:])

    def score_samples(self, X: Sequence[Any]) -> np.ndarray:
        features, errors = self.embedder(X)
        scores = np.zeros(len(features))
        if self.pretrained is not None:
            scores += self.pretrained.score_samples(features)
        if self.discrepancy is not None:
            scores += self.discrepancy.score_samples(errors[:, -self.n_blocks :])
        return scores


def grid() -> list[tuple[Any, ...]]:
    """Settings that differ: one space ignores the number of blocks, the other the PCA."""
    return [
        setting
        for density in DENSITIES
        for setting in [
            *product([density], ["pretrained"], [None], PCA_VARIANCES),
            *product([density], ["discrepancy"], N_BLOCKS, [None]),
            *product([density], ["both"], N_BLOCKS, PCA_VARIANCES),
        ]
    ]


# Measuring


def run(
    args: argparse.Namespace,
    name: str,
    train: Sequence[Any],
    normal: Sequence[Any],
    test: Sequence[Any],
    y: np.ndarray,
) -> dict[str, Any]:
    """Rate all settings in both ways and print a row."""
    embedder = Embedder(args, train)
    settings = grid()
    detectors = [Setting(embedder, *setting) for setting in settings]
    real = np.array([100 * anomaly_scorer()(detector, test, y) for detector in detectors])
    pseudo = {
        kind: np.array([100 * scorer(detector, normal) for detector in detectors])
        for kind, scorer in ((k, pseudo_anomaly_scorer(kinds=[k])) for k in KINDS)
    }
    pseudo["all"] = np.mean(list(pseudo.values()), axis=0)
    row = {
        "class": name,
        "train": len(train),
        "pseudo": len(normal),
        "test": len(test),
        **{kind: agreement(ratings, real) for kind, ratings in pseudo.items()},
        "chosen": real[np.argmax(pseudo["all"])],
        "best": real.max(),
        "median": np.median(real),
        "default": real[settings.index(DEFAULT)],
    }
    print_row(COLUMNS, row)
    if args.csv:
        append_settings(args, name, settings, real, pseudo)
    return row


def agreement(ratings: np.ndarray, real: np.ndarray) -> float:
    """Spearman's correlation, NaN where it is not defined."""
    if min(np.ptp(ratings), np.ptp(real)) == 0:
        return np.nan
    return float(spearmanr(ratings, real).statistic)


def append_settings(
    args: argparse.Namespace,
    name: str,
    settings: list[tuple[Any, ...]],
    real: np.ndarray,
    pseudo: dict[str, np.ndarray],
) -> None:
    names = ["density", "feature_spaces", "n_blocks", "pca_variance"]
    for i, setting in enumerate(settings):
        row = {
            "class": name,
            **dict(zip(names, setting, strict=True)),
            "real": real[i],
            **{kind: ratings[i] for kind, ratings in pseudo.items()},
            "image_size": args.image_size,
            "seed": args.seed,
            "version": __version__,
        }
        append_csv(args.csv, row)


def print_header(args: argparse.Namespace) -> None:
    print_circumstances(args.seed)
    print(f"{len(grid())} settings: {' or '.join(DENSITIES)}, either space or both, n_blocks in")
    print(f"{N_BLOCKS}, pca_variance in {PCA_VARIANCES}. all, {', '.join(KINDS)}:")
    print(
        "Spearman's correlation of pseudo and real AUROC over settings, by kind of pseudo-anomaly"
    )
    print("chosen (by all kinds), best, median, default: real AUROC of that setting in %\n")
    print_titles(COLUMNS)


def mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = ["all", *KINDS, "chosen", "best", "median", "default"]
    texts = {"class": f"mean of {len(rows)}", "train": "", "pseudo": "", "test": ""}
    return {**texts, **{key: np.mean([row[key] for row in rows]) for key in measured}}


if __name__ == "__main__":
    main()
