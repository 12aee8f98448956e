"""Measure how well detectors find tiny defects, pasted on normal images.

`paste_defects` pastes a scratch or a stain of `--size`, relative to the shorter side, on images
that no fit has seen. The test has these images with and without the defect. They are solar cells,
by type of module, and with `--tiles FOLDER` magnetic tiles too, in the layout of magnetic_tiles.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from magnetic_tiles import compare, load_tiles
from methods import METHODS, make_method

from skanomaly_vit import datasets
from skanomaly_vit.datasets import paste_defects

KEY = ("dataset", "size", "image_size", "method", "seed")
COMPARED = ["transformaly", "former", "gaussians", "dn2", "discrepancy", "patch-neighbors"]


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    print(f"{'data':<14} {'method':<16} {'seed':>4} {'AUROC':>6}")
    for seed in args.seeds:
        for name, images in load(args).items():
            measure(args, name, images, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiles", type=Path, default=None, metavar="FOLDER")
    add("--methods", nargs="+", choices=sorted(METHODS), default=COMPARED, metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--size", type=float, default=0.03, help="of the shorter side; default: 0.03")
    add("--image-size", type=positive, default=112, metavar="PIXELS")
    add("--train", type=positive, default=200, help="images to fit on; default: 200")
    add("--test", type=positive, default=100, help="images to paste defects on; default: 100")
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--memory", type=Path, default=None, help="folder to remember in")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Normal images of each data set."""
    cells = datasets.load_elpv()
    normal = {
        f"elpv-{module}": cells.images[(cells.module_type == module) & (cells.y == 1)]
        for module in ("mono", "poly")
    }
    if args.tiles is not None:
        normal["magnetic-tiles"] = np.array(load_tiles(args.tiles).good)
    return normal


def measure(args: argparse.Namespace, name: str, images: Any, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(images)
    train, normal = order[: args.train], order[args.train :][: args.test]
    made = paste_defects(normal, kinds=["scratch", "stain"], size=args.size, random_state=seed)
    for method in args.methods:
        detector = make_method(
            method, image_size=args.image_size, random_state=seed, n_jobs=1, memory=args.memory
        )
        detector.fit(train)
        abnormality = -detector.score_samples([*normal, *made.images])
        measured = compare(abnormality[: len(normal)], abnormality[len(normal) :])
        print(f"{name:<14} {method:<16} {seed:>4} {100 * measured['auroc']:6.1f}", flush=True)
        case = {"dataset": name, "size": args.size, "image_size": args.image_size,
                "method": method, "seed": seed, "n_train": len(train)}  # fmt: skip
        merge_csv(args.output, case | {k: round(v, 5) for k, v in measured.items()}, KEY)


if __name__ == "__main__":
    main()
