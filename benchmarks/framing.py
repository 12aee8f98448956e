"""Measure what tiles, padding and regions of interest do for accuracy and time.

Data: magnetic tiles with real defects (`--tiles FOLDER`, in the layout of magnetic_tiles.py); solar
cells with a real defect; solar cells with a tiny one, pasted by `paste_defects`; solar cells on
which a number is printed that differs from cell to cell, with and without `roi`; and pairs of solar
cells, a monocrystalline one on the left of a polycrystalline one, of which one has a real defect,
or which have changed places.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from magnetic_tiles import compare, load_tiles, split_good
from PIL import Image, ImageDraw
from sklearn.utils import Bunch

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit.datasets import paste_defects

KEY = ("dataset", "framing", "seed")

#: Name -> parameters of the detector.
FRAMINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "keep_aspect": {"keep_aspect": True},
    "whole, 224 px": {"image_size": 224},
    "tiles (2, 2)": {"tiles": (2, 2)},
    "tiles (2, 2), by position": {"tiles": (2, 2), "tile_density": "position"},
    "tiles (1, 2)": {"tiles": (1, 2)},
    "tiles (1, 2), by position": {"tiles": (1, 2), "tile_density": "position"},
    "tiles (3, 3)": {"tiles": (3, 3)},
    "tiles (3, 3), by position": {"tiles": (3, 3), "tile_density": "position"},
    "tiles auto": {"tiles": "auto"},
}

#: Top, left, bottom, right of a printed number, as shares of the sides.
LABEL = (0.02, 0.55, 0.14, 0.98)


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    print(f"{'data':<22} {'framing':<26} {'seed':>4} {'AUROC':>6} {'ms/image':>9}")
    for seed in args.seeds:
        for name, make in load(args).items():
            for framing, parameters in framings_of(args, name).items():
                measure(args, name, make(seed), framing, parameters, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiles", type=Path, default=None, metavar="FOLDER")
    add("--data", nargs="+", default=None, metavar="NAME", help="default: all")
    add("--framings", nargs="+", choices=list(FRAMINGS), default=list(FRAMINGS), metavar="NAME")
    add("--train", type=positive, default=200, help="images to fit on; default: 200")
    add("--test", type=positive, default=150, help="images of each side; default: 150")
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--memory", type=Path, default=None, help="folder to remember in")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Name -> function of a seed that gives the images to fit on, and both sides of the test."""
    cells = datasets.load_elpv()
    of_poly = cells.images[cells.module_type == "poly"], cells.y[cells.module_type == "poly"]
    made = {
        "cells": lambda seed: of_cells(args, *of_poly, seed),
        "cells, tiny defects": lambda seed: of_pasted(args, of_poly[0][of_poly[1] == 1], seed),
        "pairs": lambda seed: of_pairs(args, cells, seed, swapped=False),
        "pairs, swapped": lambda seed: of_pairs(args, cells, seed, swapped=True),
        "cells, printed number": lambda seed: printed(of_cells(args, *of_poly, seed), seed),
    }
    if args.tiles is not None:
        tiles = load_tiles(args.tiles)
        made["magnetic tiles"] = lambda seed: of_tiles(args, tiles, seed)
        good = np.array(tiles.good)
        made["magnetic tiles, tiny"] = lambda seed: of_pasted(args, good, seed)
    return {name: made[name] for name in args.data or made}


def framings_of(args: argparse.Namespace, name: str) -> dict[str, dict[str, Any]]:
    if name == "cells, printed number":
        return {"whole": {}, "roi": {"roi": ~label_mask((300, 300))}}
    return {framing: FRAMINGS[framing] for framing in args.framings}


def of_cells(args: argparse.Namespace, images: np.ndarray, y: np.ndarray, seed: int) -> Bunch:
    rng = np.random.default_rng(seed)
    normal, defective = rng.permutation(images[y == 1]), rng.permutation(images[y != 1])
    train, test = normal[: args.train], normal[args.train :][: args.test]
    return Bunch(train=train, normal=test, abnormal=defective[: args.test])


def of_pairs(args: argparse.Namespace, cells: Bunch, seed: int, *, swapped: bool) -> Bunch:
    """Pairs of cells of two kinds; of the abnormal ones, one has a defect, or both are swapped."""
    rng = np.random.default_rng(seed)
    n = args.train + 2 * args.test
    good, bad = (
        [
            rng.permutation(cells.images[(cells.module_type == kind) & ((cells.y == 1) == is_good)])
            for kind in ("mono", "poly")
        ]
        for is_good in (True, False)
    )
    left, right = ([np.asarray(Image.open(path)) for path in paths[:n]] for paths in good)
    abnormal = list(zip(left, right, strict=True))[-args.test :]
    for i, (of_left, of_right) in enumerate(abnormal):
        damaged = np.asarray(Image.open(rng.choice(bad[i % 2])))
        with_defect = (damaged, of_right) if i % 2 == 0 else (of_left, damaged)
        abnormal[i] = (of_right, of_left) if swapped else with_defect
    pairs = [np.hstack(pair) for pair in zip(left, right, strict=True)]
    return Bunch(
        train=pairs[: args.train],
        normal=pairs[args.train :][: args.test],
        abnormal=[np.hstack(pair) for pair in abnormal],
    )


def of_pasted(args: argparse.Namespace, images: np.ndarray, seed: int) -> Bunch:
    order = np.random.default_rng(seed).permutation(images)
    train, normal = order[: args.train], order[args.train :][: args.test]
    made = paste_defects(normal, kinds=["scratch", "stain"], size=0.03, random_state=seed)
    return Bunch(train=train, normal=normal, abnormal=made.images)


def of_tiles(args: argparse.Namespace, tiles: Bunch, seed: int) -> Bunch:
    train, others = split_good(tiles, args.train, seed)
    defective = [path for paths in tiles.defects.values() for path in paths]
    return Bunch(train=train, normal=others[: args.test], abnormal=defective)


def label_mask(shape: tuple[int, int]) -> np.ndarray:
    """Mask of the printed number."""
    (height, width), (top, left, bottom, right) = shape, LABEL
    mask = np.zeros(shape, bool)
    mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask


def printed(data: Bunch, seed: int) -> Bunch:
    """The same images with a number printed on each, in the same place."""
    rng = np.random.default_rng(seed)
    return Bunch(**{k: [number(Image.open(path), rng) for path in v] for k, v in data.items()})


def number(drawn: Image.Image, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.nonzero(label_mask(drawn.size[::-1]))
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    draw = ImageDraw.Draw(drawn)
    white = 255 if drawn.mode == "L" else (255, 255, 255)
    draw.rectangle((left, top, right, bottom), fill=white)
    text = "".join(map(str, rng.integers(0, 10, rng.integers(4, 10))))
    black = 0 if drawn.mode == "L" else (0, 0, 0)
    draw.text((left + 4, top + 4), text, fill=black, font_size=int(bottom - top - 8))
    return np.asarray(drawn)


def measure(
    args: argparse.Namespace,
    name: str,
    data: Bunch,
    framing: str,
    parameters: dict[str, Any],
    seed: int,
) -> None:
    detector = TransformalyDetector(random_state=seed, memory=args.memory, **parameters)
    detector.fit(list(data.train))
    detector.set_params(memory=None)
    started = time.perf_counter()
    abnormality = -detector.score_samples([*data.normal, *data.abnormal])
    n_images = len(abnormality)
    seconds = (time.perf_counter() - started) / n_images
    measured = compare(abnormality[: len(data.normal)], abnormality[len(data.normal) :])
    flagged = float((-abnormality[: len(data.normal)] < detector.offset_).mean())
    print(f"{name:<22} {framing:<26} {seed:>4} {100 * measured['auroc']:6.1f} "
          f"{1000 * seconds:9.1f}", flush=True)  # fmt: skip
    case = {"dataset": name, "framing": framing, "seed": seed, "n_train": len(data.train)}
    figures = measured | {"false_alarms": flagged, "ms_per_image": 1000 * seconds}
    merge_csv(args.output, case | {k: round(v, 5) for k, v in figures.items()}, KEY)


if __name__ == "__main__":
    main()
