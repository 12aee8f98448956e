"""Compare the speed of a fit by the paper's procedure with the detector's default, in one run.

(a) *paper*: a student for each of the L blocks, all tokens, Adam at 1e-4, batches of 32, 30 epochs,
    no early stopping; one pass of the backbone for the features and another for the discrepancies;
    a PCA to 90 % of the variance, whitened, and a Gaussian in each space, on all training images.
(b) *default*: `TransformalyDetector(random_state=seed)`.

Both see the same images in the unimodal setting: the named class is normal. With fewer than 30
epochs the seconds count the epochs that ran; the script extrapolates nothing.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from harness import (
    DataError,
    choose_classes,
    find_classes,
    not_negative,
    peak_memory,
    positive,
    print_circumstances,
    sample,
    split_classes,
)
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from skanomaly_vit import GaussianDensity, TransformalyDetector
from skanomaly_vit._backbone.teacher import load_teacher
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.preprocessing import Preprocessing

BATCH_SIZE = 32
N_SCORED_BLOCKS = 10
COLUMNS = f"{'class':<12} {'side':<8} {'AUROC':>6} {'fit_s':>8} {'score_s':>8} {'peak_mb':>8}"


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        folders = find_classes(args.data)
        names = choose_classes(args.normal_class, folders["train"])
        print_circumstances(args.seed)
        print(f"paper's procedure: {args.epochs} epochs\n{COLUMNS}", flush=True)
        for name in names:
            compare(args, folders, name)
    except DataError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="train/<class>/, test/<class>/")
    add("--normal-class", action="append", required=True, metavar="NAME", help="repeatable")
    add("--train", type=positive, default=500, help="training images; default: 500")
    add("--test", type=positive, default=600, help="test images, half normal; default: 600")
    add("--epochs", type=positive, default=30, help="of the paper's procedure; default: 30")
    add("--seed", type=not_negative, default=0, help="default: 0")
    return parser


def compare(args: argparse.Namespace, folders: dict[str, list[Path]], name: str) -> None:
    train = sample(split_classes(folders["train"], "unimodal", name)[0], args.train, args.seed)
    normal, abnormal = split_classes(folders["test"], "unimodal", name)
    half = args.test // 2
    test = sample(normal, half, args.seed) + sample(abnormal, half, args.seed)
    is_abnormal = np.repeat([0, 1], [len(test) - half, half])
    seconds = {}
    # The default goes first: peak memory is the process's highest so far.
    for side, make in {"default": make_default, "paper": make_paper}.items():
        detector = make(args)
        start = perf_counter()
        detector.fit(train)
        fitted = perf_counter()
        scores = detector.score_samples(test)
        scored = perf_counter()
        seconds[side] = fitted - start
        auroc = 100 * roc_auc_score(is_abnormal, -scores)
        times = f"{fitted - start:8.1f} {scored - fitted:8.1f}"
        print(f"{name:<12} {side:<8} {auroc:6.1f} {times} {peak_memory():8.0f}", flush=True)
    print(f"{name:<12} paper / default: {seconds['paper'] / seconds['default']:.1f}", flush=True)


def make_default(args: argparse.Namespace) -> TransformalyDetector:
    return TransformalyDetector(random_state=args.seed)


def make_paper(args: argparse.Namespace) -> PaperProcedure:
    return PaperProcedure(args.epochs, args.seed)


class PaperProcedure:
    """The procedure of arXiv 2112.04185, written out for the embedded backbone."""

    def __init__(self, epochs: int, seed: int) -> None:
        self.epochs, self.seed = epochs, seed

    def fit(self, paths: list[str]) -> PaperProcedure:
        self.teacher = load_teacher(
            "embedded", pretrained=True, image_size=None, device="cpu", seed=0
        )
        self.train_students(paths)
        features, discrepancies = self.features(paths), self.discrepancies(paths)
        self.pca = PCA(0.9, whiten=True, svd_solver="full").fit(features)
        self.p_features = GaussianDensity(shrinkage=0.0).fit(self.pca.transform(features))
        self.p_discrepancies = GaussianDensity(shrinkage=0.0).fit(discrepancies)
        return self

    def score_samples(self, paths: list[str]) -> np.ndarray:
        z_p, z_f = self.pca.transform(self.features(paths)), self.discrepancies(paths)
        return self.p_features.score_samples(z_p) + self.p_discrepancies.score_samples(z_f)

    def train_students(self, paths: list[str]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.students = [self.new_student(block) for block in self.teacher.blocks]
        parameters = [p for student in self.students for p in student.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-4)
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            for batch in self.batches(rng.permutation(paths).tolist()):
                pairs = self.block_pairs(batch)
                loss = torch.stack(
                    [
                        torch.nn.functional.mse_loss(student(tokens), target)
                        for student, (tokens, target) in zip(self.students, pairs, strict=True)
                    ]
                ).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def new_student(self, block: torch.nn.Module) -> torch.nn.Module:
        student = copy.deepcopy(block).requires_grad_(True)
        for parameter in student.parameters():
            if parameter.ndim > 1:
                torch.nn.init.xavier_uniform_(parameter)
        for module in student.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.bias)
        torch.nn.init.ones_(student.ls1.gamma)
        torch.nn.init.ones_(student.ls2.gamma)
        return student

    def batches(self, paths: list[str]) -> Iterator[torch.Tensor]:
        preprocessing: Preprocessing = self.teacher.preprocessing
        return open_images(paths).batches(preprocessing, batch_size=BATCH_SIZE)

    @torch.no_grad()
    def block_pairs(self, batch: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        model = self.teacher.model
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(batch)))
        pairs = []
        for block in model.blocks:
            pairs.append((tokens, block(tokens)))
            tokens = pairs[-1][1]
        return pairs

    @torch.inference_mode()
    def features(self, paths: list[str]) -> np.ndarray:
        return np.concatenate([self.teacher.model(b).numpy() for b in self.batches(paths)])

    @torch.inference_mode()
    def discrepancies(self, paths: list[str]) -> np.ndarray:
        rows = []
        for batch in self.batches(paths):
            errors = [
                (student(tokens) - target).square().mean(dim=(1, 2))
                for student, (tokens, target) in zip(
                    self.students, self.block_pairs(batch), strict=True
                )
            ]
            rows.append(torch.stack(errors, dim=1)[:, -N_SCORED_BLOCKS:].numpy())
        return np.concatenate(rows).astype(np.float64)


if __name__ == "__main__":
    main()
