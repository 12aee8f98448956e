"""Measure what a few known defects teach the weights of feature spaces (`tune_fusion`).

For each kind of defect, some images of it are given to the fitted detector, in several draws. The
script prints how the AUROC changes on the other images of that kind, and on kinds that were not
given, and which share of fresh normal images the new threshold flags. Data: magnetic tiles
(`--tiles FOLDER`, in the layout of magnetic_tiles.py), and solar cells with a real defect, a
scratch or a stain.

With `--blocks`, each block's student has a weight of its own in place of the discrepancy space, as
no method of the package offers; a threshold is not computed then.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import append_csv, not_negative, positive, print_circumstances
from magnetic_tiles import load_tiles
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit.datasets import paste_defects
from skanomaly_vit.detector._fit_summary import shards_of_sample
from skanomaly_vit.detector._fusion_weights import learn_weights, left_out_scores
from skanomaly_vit.exceptions import CalibrationWarning

Parts = dict[str, np.ndarray]


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    print(
        f"{'data':<15} {'given':>5} {'kind':<16} {'AUROC':>6} {'change':>7} {'worst':>6} "
        f"{'alarms':>7}"
    )
    found: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {}
    for seed in args.seeds:
        for name, normal, kinds in load(args, seed):
            detector = TransformalyDetector(random_state=seed).fit(list(normal[: args.train]))
            fresh = list(normal[args.train :][: args.test])
            measured = measure_blocks if args.blocks else measure
            for case, figures in measured(args, detector, fresh, kinds, seed):
                found.setdefault((name, *case), []).append(figures)
    for (name, n_given, side), figures in found.items():
        before, changes, flagged = np.array(figures).T
        row = {"dataset": name, "n_given": n_given, "kind": side, "n_draws": len(changes),
               "auroc_before": before.mean(), "change": changes.mean(),
               "change_error": changes.std() / len(changes) ** 0.5, "worst_change": changes.min(),
               "false_alarms": flagged.mean()}  # fmt: skip
        print(f"{name:<15} {n_given:>5} {side:<16} {before.mean():6.2f} {changes.mean():+7.2f} "
              f"{changes.min():+6.1f} {flagged.mean():7.1%}")  # fmt: skip
        append_csv(args.output, {k: v if isinstance(v, str | int) else round(float(v), 4)
                                 for k, v in row.items()})  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiles", type=Path, default=None, metavar="FOLDER")
    add("--blocks", action="store_true", help="weigh each block's student")
    add("--given", nargs="+", type=positive, default=[1, 5, 20], help="default: 1 5 20")
    add("--draws", type=positive, default=8, help="default: 8")
    add("--train", type=positive, default=200, help="images to fit on; default: 200")
    add("--test", type=positive, default=150, help="normal images to test on; default: 150")
    add("--seeds", nargs="+", type=not_negative, default=[2, 3])
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(
    args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, np.ndarray, dict[str, list[Any]]]]:
    """Name, normal images, and defective ones by kind, of each data set."""
    rng = np.random.default_rng(seed)
    if args.tiles is not None:
        tiles = load_tiles(args.tiles)
        yield "magnetic-tiles", rng.permutation(tiles.good), tiles.defects
    cells = datasets.load_elpv()
    for module in ("mono", "poly"):
        of_module = cells.module_type == module
        normal = rng.permutation(cells.images[of_module & (cells.y == 1)])
        real = rng.permutation(cells.images[of_module & (cells.y != 1)])[:200]
        spare = normal[args.train + args.test :][:80]
        pasted = {
            kind: list(paste_defects(spare, kinds=[kind], size=0.06, random_state=seed).images)
            for kind in ("scratch", "stain")
        }
        yield f"elpv-{module}", normal, {"real": list(real), **pasted}


def measure(
    args: argparse.Namespace,
    detector: TransformalyDetector,
    fresh: list[Any],
    kinds: dict[str, list[Any]],
    seed: int,
) -> Iterator[tuple[tuple[int, str], tuple[float, float, float]]]:
    """Number given and side -> AUROC before, its change, share of normal images flagged."""
    normal = detector._score_parts(fresh)
    parts = {kind: detector._score_parts(images) for kind, images in kinds.items()}
    before = {kind: auroc(normal, of_kind, {}) for kind, of_kind in parts.items()}
    for kind, images in kinds.items():
        for given, others in draws_of(args, len(images), seed):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                detector.tune_fusion([images[i] for i in given])
            weights = detector.fusion_weights_
            flagged = float((total(normal, weights) < detector.offset_).mean())
            rest = {space: values[others] for space, values in parts[kind].items()}
            old, new = auroc(normal, rest, {}), auroc(normal, rest, weights)
            yield (len(given), "given"), (old, new - old, flagged)
            for other in kinds.keys() - {kind}:
                change = auroc(normal, parts[other], weights) - before[other]
                yield (len(given), "other"), (before[other], change, flagged)
    detector.tune_fusion()


def draws_of(
    args: argparse.Namespace, n_images: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of a kind that are given, and the others, for each number and draw."""
    for n_given in args.given:
        for draw in range(args.draws if n_images >= n_given + 5 else 0):
            order = np.random.default_rng([seed, draw]).permutation(n_images)
            yield order[:n_given], order[n_given:]


def measure_blocks(
    args: argparse.Namespace,
    detector: TransformalyDetector,
    fresh: list[Any],
    kinds: dict[str, list[Any]],
    seed: int,
) -> Iterator[tuple[tuple[int, str], tuple[float, float, float]]]:
    """As `measure`, with a weight for each block."""
    known = shards_of_sample(detector._fit_summary.learned)
    learned = left_out_scores(detector.density_, detector.fusion_, list(known))
    errors = detector._fit_summary.learned["discrepancy"].rows.astype(np.float64)
    learned = by_block(detector, learned, errors, left_out=True)
    normal, *others = (
        by_block(detector, detector._score_parts(images), detector.distillation_.transform(images))
        for images in (fresh, *kinds.values())
    )
    parts = dict(zip(kinds, others, strict=True))
    for kind, images in kinds.items():
        for chosen in draws_of(args, len(images), seed):
            given, rest = (
                {term: values[side] for term, values in parts[kind].items()} for side in chosen
            )
            weights, n_given = learn_weights(learned, given), len(chosen[0])
            old = auroc(normal, rest, {})
            change = auroc(normal, rest, weights) - old
            yield (n_given, "given, by block"), (old, change, np.nan)
            for other in kinds.keys() - {kind}:
                old = auroc(normal, parts[other], {})
                change = auroc(normal, parts[other], weights) - old
                yield (n_given, "other, by block"), (old, change, np.nan)


def by_block(
    detector: TransformalyDetector, parts: Parts, errors: np.ndarray, *, left_out: bool = False
) -> Parts:
    """Scores in views, and of each block in place of all: the default density is their sum."""
    density = detector.density_["discrepancy"]
    z = (errors - density.location_) / density.scale_  # [n, n_blocks]
    if left_out:  # mean and deviation of the other ones
        n = len(z)
        z = n / (n - 1) * z / np.sqrt(n / (n - 1) * (1 - z**2 / (n - 1)))
    terms = -np.maximum(z, 0) / detector.fusion_["discrepancy"][1]
    views = {name: values for name, values in parts.items() if name != "discrepancy"}
    return views | {f"block {i}": terms[:, i] for i in range(terms.shape[1])}


def total(parts: Parts, weights: dict[str, float]) -> np.ndarray:
    return np.sum([weights.get(space, 1.0) * values for space, values in parts.items()], axis=0)


def auroc(normal: Parts, defective: Parts, weights: dict[str, float]) -> float:
    sides = total(normal, weights), total(defective, weights)
    is_defect = np.repeat([0, 1], [len(side) for side in sides])
    return 100 * float(roc_auc_score(is_defect, -np.concatenate(sides)))


if __name__ == "__main__":
    main()
