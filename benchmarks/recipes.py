"""Compare recipes: features, discrepancies, densities and fusions, on images of the training part.

The script ignores the test part of a data set: of each class it takes `--train` images for training
and `--choose` others for measuring, all from `train/<class>/`. Students are ridge students; images
pass through the backbone once, and a temporary folder keeps their tokens (0.6 MB per image).
Statistics of ridge students add up, so those of each class and fold give all settings, classes and
folds.

Discrepancies of the training images are *seen* (of students that learned from them) or *crossed*
(of students that learned from the other four fifths). They are pooled over all tokens, or over the
worst quarter of the patches, or that of the worst one. Scores of views are those of training images
that are left out.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import find_classes, not_negative, positive, print_circumstances, sample
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from skanomaly_vit import ExcessDensity, GaussianDensity, KNNDensity, WhitenedKNNDensity
from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.teacher import Teacher, load_teacher
from skanomaly_vit._backbone.views import Readout
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.distillation._ridge import RidgeModule, RidgeStatistics

N_FOLDS = 5
N_SEEN = 2000  # training images of the multimodal setting whose discrepancies are computed
BATCH = 64
SETTINGS = ("unimodal", "multimodal")

Scores = tuple[np.ndarray, np.ndarray]  # of training images, and of images to measure on
Scorer = Callable[[np.ndarray, np.ndarray], Scores]


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    images = Images(args)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        tokens = Tokens(images, Path(folder))
        print("embedded", flush=True)
        discrepancies = Discrepancies(images, tokens, args.alpha, args.n_blocks)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "pretrained", "discrepancy", "fusion", "mean_auroc", "seed"])
        for row in compare(images, tokens.features(), discrepancies):
            writer.writerow([*row, args.seed])
            print(" ".join(f"{value:<22}" for value in row), flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="train/<class>/")
    add("--train", type=positive, default=500, help="images a class; default: 500")
    add("--choose", type=positive, default=100, help="images a class; default: 100")
    add("--alpha", type=float, default=0.01, help="alpha of RidgeStudent; default: 0.01")
    add("--n-blocks", type=positive, default=5, help="default: 5")
    add("--seed", type=not_negative, default=0, help="default: 0")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


class Images:
    """Images, with their classes and folds."""

    def __init__(self, args: argparse.Namespace) -> None:
        folders = find_classes(args.data)["train"]
        drawn = [sample([folder], args.train + args.choose, args.seed) for folder in folders]
        self.n_classes = len(folders)
        self.paths = [p for of in drawn for p in of[: args.train]]
        self.n_train = len(self.paths)
        self.paths += [p for of in drawn for p in of[args.train :]]
        sizes = [
            [min(len(of), args.train) for of in drawn],
            [len(of[args.train :]) for of in drawn],
        ]
        self.classes = [np.repeat(np.arange(len(drawn)), of_part) for of_part in sizes]
        rng = np.random.default_rng(args.seed)
        self.folds = rng.permutation(np.arange(self.n_train) % N_FOLDS)
        self.some = np.isin(np.arange(self.n_train), rng.permutation(self.n_train)[:N_SEEN])

    def normal(self, setting: str, name: int) -> np.ndarray:
        """Mask of the training images that are normal."""
        of_class = self.classes[0] == name
        return of_class if setting == "unimodal" else ~of_class

    def auroc(self, setting: str, name: int, normality: np.ndarray) -> float:
        of_class = self.classes[1] == name
        return float(roc_auc_score(~of_class if setting == "unimodal" else of_class, -normality))


class Tokens:
    """Tokens before and after each block, half precision, on disk."""

    def __init__(self, images: Images, folder: Path) -> None:
        self.teacher = load_teacher(
            "embedded", pretrained=True, image_size=None, device="cpu", seed=0
        )
        self.n_levels = len(self.teacher.blocks) + 1
        self._n_train = images.n_train
        self._levels: list[np.ndarray] = []
        self.pooled = np.concatenate(list(self._embed(self.teacher, images, folder)))
        self._features = self._pool()

    def _embed(self, teacher: Teacher, images: Images, folder: Path) -> Iterator[np.ndarray]:
        start = 0
        source = open_images(images.paths)
        for batch in source.batches(teacher.preprocessing, batch_size=BATCH, n_jobs=2):

            def visit(call: BlockCall) -> None:
                for level, values in ((call.index, call.tokens), (call.index + 1, call.output)):
                    if level == len(self._levels):
                        shape = (len(images.paths), *values.shape[1:])
                        path = folder / f"{level}.npy"
                        self._levels.append(np.lib.format.open_memmap(path, "w+", "f2", shape))
                    self._levels[level][start : start + len(values)] = values.numpy()  # noqa: B023

            yield teacher(batch, blocks=range(len(teacher.blocks)), visit=visit).numpy()
            start += len(batch)

    def calls(self, index: int, positions: np.ndarray) -> Iterator[BlockCall]:
        """A block at work on some of the images."""
        for start in range(0, len(positions), BATCH):
            some = positions[start : start + BATCH]
            tokens, output = (
                torch.from_numpy(np.asarray(self._levels[level][some], dtype=np.float32))
                for level in (index, index + 1)
            )
            yield BlockCall(index, (tokens,), {}, output)

    def _pool(self) -> dict[str, np.ndarray]:
        """Class token, and mean of the patches, after the final norm, of late blocks."""
        features = {"cls": self.pooled}
        for back in range(3):
            level = self.n_levels - 1 - back
            values = torch.from_numpy(np.asarray(self._levels[level], dtype=np.float32))
            normed = self.teacher.model.norm(values).numpy()
            features[f"cls-{back}"] = normed[:, 0]
            features[f"mean-{back}"] = normed[:, 1:].mean(axis=1)
            features[f"max-{back}"] = normed[:, 1:].max(axis=1)
        return features

    def features(self) -> dict[str, Scores]:
        """Each kind of feature, of the training images and of the others."""
        return {
            name: (values[: self._n_train].astype(float), values[self._n_train :].astype(float))
            for name, values in self._features.items()
        }


class Discrepancies:
    """Errors of ridge students: of training images, seen and crossed; of others.

    Each is an array (images, blocks, poolings).
    """

    def __init__(self, images: Images, tokens: Tokens, alpha: float, n_blocks: int) -> None:
        self.images, self.alpha = images, alpha
        blocks = range(tokens.n_levels - 1 - n_blocks, tokens.n_levels - 1)
        n_measured = len(images.paths) - images.n_train
        cases = list(product(SETTINGS, range(images.n_classes)))
        train_shape, other_shape = (
            (n, len(blocks), len(POOLINGS)) for n in (images.n_train, n_measured)
        )
        self.seen = {case: np.full(train_shape, np.nan) for case in cases}
        self.crossed = {case: np.full(train_shape, np.nan) for case in cases}
        self.measured = {case: np.empty(other_shape) for case in cases}
        for column, block in enumerate(blocks):
            self._solve(tokens, block, column)
            print(f"block {block}", flush=True)

    def _solve(self, tokens: Tokens, block: int, column: int) -> None:
        images = self.images
        parts = {
            (name, fold): statistics(
                tokens, block, np.flatnonzero((images.classes[0] == name) & (images.folds == fold))
            )
            for name in range(images.n_classes)
            for fold in range(N_FOLDS)
        }
        others = np.arange(images.n_train, len(images.paths))
        for case in self.seen:
            normal = images.normal(*case)
            names = set(images.classes[0][normal])
            scored = np.flatnonzero(normal & (images.some if case[0] == "multimodal" else True))
            student = solve(
                (part for (name, _), part in parts.items() if name in names), self.alpha
            )
            self.measured[case][:, column] = errors(student, tokens, block, others)
            self.seen[case][scored, column] = errors(student, tokens, block, scored)
            for fold in range(N_FOLDS):
                others_folds = (p for (n, f), p in parts.items() if n in names and f != fold)
                student = solve(others_folds, self.alpha)
                of_fold = scored[images.folds[scored] == fold]
                self.crossed[case][of_fold, column] = errors(student, tokens, block, of_fold)


def statistics(tokens: Tokens, block: int, positions: np.ndarray) -> RidgeStatistics:
    sums: RidgeStatistics | None = None
    for call in tokens.calls(block, positions):
        sums = sums or RidgeStatistics.empty(call.tokens.shape[-1])
        sums.add(call)
    if sums is None:
        raise ValueError("a class has no images in one of the folds; pass a larger --train")
    return sums


def solve(parts: Iterator[RidgeStatistics], alpha: float) -> RidgeModule:
    grams, crosses = zip(*((part.gram, part.cross) for part in parts), strict=True)
    weights = RidgeStatistics(sum(grams), sum(crosses)).solve(alpha).float()
    dim = weights.shape[1]
    return RidgeModule(*weights.split([dim, dim, 1]))


def errors(student: RidgeModule, tokens: Tokens, block: int, positions: np.ndarray) -> np.ndarray:
    """Errors of images, (images, poolings)."""
    found = []
    for call in tokens.calls(block, positions):
        of_tokens = (student(call.tokens) - call.output).square().mean(dim=2)
        pooled = [readout.pool_errors(of_tokens, n_prefix=1) for readout in POOLINGS.values()]
        found.append(torch.stack(pooled, dim=1).numpy())
    return np.concatenate(found)


#: Name -> pooling of the errors of tokens.
POOLINGS = {
    "mean": Readout(),
    "worst quarter": Readout(pooling=0.25),
    "worst": Readout(pooling=0.0),
}


def with_density(density: Any) -> Scorer:
    def score(train: np.ndarray, others: np.ndarray) -> Scores:
        fitted = density.fit(train)
        return fitted.score_samples(train), fitted.score_samples(others)

    return score


def left_out(density: Any) -> Scorer:
    """Scores of training images by the other ones."""

    def score(train: np.ndarray, others: np.ndarray) -> Scores:
        fitted = density.fit(train)
        return fitted.score_left_out(train), fitted.score_samples(others)

    return score


def views_of(n_views: int, density: Any) -> Scorer:
    """Standardized scores of several views, summed."""

    def score(train: np.ndarray, others: np.ndarray) -> Scores:
        total = np.zeros(len(train)), np.zeros(len(others))
        pairs = zip(
            np.split(train, n_views, axis=1), np.split(others, n_views, axis=1), strict=True
        )
        for learned, new in pairs:
            known, scored = left_out(density)(learned, new)
            for sum_, values in zip(total, (known, scored), strict=True):
                sum_ += (values - known.mean()) / known.std()
        return total

    return score


def whitened(train: np.ndarray, others: np.ndarray) -> Scores:
    pca = PCA(0.9, whiten=True, svd_solver="full").fit(train)
    return with_density(GaussianDensity())(pca.transform(train), pca.transform(others))


def k_means(train: np.ndarray, others: np.ndarray) -> Scores:
    """Ten centers and one shrunk covariance around them."""
    means = KMeans(10, n_init=3, random_state=0).fit(train)
    around = GaussianDensity(shrinkage="ledoit_wolf").fit(
        train - means.cluster_centers_[means.labels_]
    )
    shares = np.log(np.bincount(means.labels_) / len(train))

    def score(rows: np.ndarray) -> np.ndarray:
        of_means = zip(shares, means.cluster_centers_, strict=True)
        return np.logaddexp.reduce([w + around.score_samples(rows - c) for w, c in of_means])

    return score(train), score(others)


def logarithmic(scorer: Scorer) -> Scorer:
    return lambda train, others: scorer(np.log(train), np.log(others))


def neighbors(exponent: float) -> Any:
    return WhitenedKNNDensity(whitening_exponent=exponent)


THREE = ["cls", "cls-1", "max-0"]
LEDOIT_WOLF = with_density(GaussianDensity(shrinkage="ledoit_wolf"))
GAUSSIAN = with_density(GaussianDensity())

#: Name -> features to concatenate, and their scorer.
PRETRAINED: dict[str, tuple[list[str], Scorer]] = {
    "pca 90 %, gaussian": (["cls"], whitened),
    "ledoit-wolf": (["cls"], LEDOIT_WOLF),
    "cls + mean patch": (["cls", "mean-0"], LEDOIT_WOLF),
    "one block earlier": (["cls-1"], LEDOIT_WOLF),
    "two blocks earlier": (["cls-2"], LEDOIT_WOLF),
    "10 means": (["cls"], k_means),
    "ledoit-wolf, left out": (["cls"], left_out(GaussianDensity(shrinkage="ledoit_wolf"))),
    "whitened neighbors": (["cls"], left_out(neighbors(0.5))),
    "3 views": (THREE, views_of(3, neighbors(0.5))),
    "4 views": ([*THREE, "max-1"], views_of(4, neighbors(0.5))),
    "4 views, half whitened": ([*THREE, "max-1"], views_of(4, neighbors(0.25))),
    "4 views, not whitened": ([*THREE, "max-1"], views_of(4, neighbors(0.0))),
}

LINEAR = with_density(ExcessDensity(tail="exponential"))

#: Name -> kind of discrepancies of the training images, their pooling, and their scorer.
DISCREPANCY: dict[str, tuple[str, str, Scorer]] = {
    "gaussian": ("seen", "mean", GAUSSIAN),
    "gaussian, crossed": ("crossed", "mean", GAUSSIAN),
    "gaussian, log": ("seen", "mean", logarithmic(GAUSSIAN)),
    "knn": ("seen", "mean", with_density(KNNDensity())),
    "excess": ("seen", "mean", with_density(ExcessDensity())),
    "excess, crossed": ("crossed", "mean", with_density(ExcessDensity())),
    "linear": ("crossed", "mean", LINEAR),
    "linear, worst quarter": ("crossed", "worst quarter", LINEAR),
    "linear, worst": ("crossed", "worst", LINEAR),
    "linear, worst, seen": ("seen", "worst", LINEAR),
    "squared, worst": ("crossed", "worst", with_density(ExcessDensity())),
}


def compare(
    images: Images, features: dict[str, Scores], discrepancies: Discrepancies
) -> Iterator[tuple[str, str, str, str, float]]:
    for setting in SETTINGS:
        first = {
            name: [
                scorer(*(np.hstack([features[k][i][mask] for k in kinds]) for i, mask in
                         enumerate((images.normal(setting, c), slice(None)))))
                for c in range(images.n_classes)
            ]
            for name, (kinds, scorer) in PRETRAINED.items()
        }  # fmt: skip
        second = {
            name: [
                scorer(known(getattr(discrepancies, kind)[setting, c][:, :, pooling]),
                       discrepancies.measured[setting, c][:, :, pooling])
                for c in range(images.n_classes)
            ]
            for name, (kind, pooling_name, scorer) in DISCREPANCY.items()
            for pooling in [list(POOLINGS).index(pooling_name)]
        }  # fmt: skip
        nothing: list[Scores] = [(np.array([0.0, 1.0]), np.zeros(1))] * images.n_classes
        for (a, in_a), (b, in_b) in product(
            (first | {"": nothing}).items(), (second | {"": nothing}).items()
        ):
            for fusion in FUSIONS if a and b else ["product"] if a or b else []:
                add, weight = FUSIONS[fusion]
                of_classes = [
                    images.auroc(setting, c, add(in_a[c]) + weight * add(in_b[c]))
                    for c in range(images.n_classes)
                ]
                yield setting, a, b, fusion if a and b else "", round(np.mean(of_classes), 5)


def known(rows: np.ndarray) -> np.ndarray:
    return rows[~np.isnan(rows[:, 0])]


def standardized(scores: Scores) -> np.ndarray:
    return (scores[1] - scores[0].mean()) / scores[0].std()


#: Name -> scale of scores, and weight of the discrepancies.
FUSIONS: dict[str, tuple[Callable[[Scores], np.ndarray], float]] = {
    "product": (lambda scores: scores[1], 1.0),
    "standardized": (standardized, 1.0),
    "standardized, 3/4": (standardized, 0.75),
    "standardized, 1/2": (standardized, 0.5),
}


if __name__ == "__main__":
    main()
