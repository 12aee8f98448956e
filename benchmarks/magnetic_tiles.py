"""Measure detectors on magnetic tiles, by kind of defect.

The tiles are of Huang, Qiu, Guo, Wang and Yuan, "Surface defect saliency of magnetic tile": grey
photographs with five kinds of real defects and their masks. Detectors learn from tiles without a
defect. The test has the other ones and all tiles with one kind of defect. `--data` is a folder with
`good/`, `defect/KIND/` and, for the masks that `maps.py` reads, `mask/KIND/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    DataError,
    images_in,
    merge_csv,
    not_negative,
    positive,
    print_circumstances,
)
from methods import METHODS, make_method, name_in
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import Bunch

KEY = ("backbone", "image_size", "kind", "method", "seed")
COMPARED = ["transformaly", "former", "gaussians", "dn2", "gaussian", "lof", "whitened-knn",
            "patch-neighbors"]  # fmt: skip


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    tiles = load_tiles(args.data)
    print(f"{'method':<16} {'size':>4} {'seed':>4} "
          + " ".join(f"{kind:>9}" for kind in [*tiles.defects, "mean"]))  # fmt: skip
    for seed in args.seeds:
        for size in args.image_sizes:
            for method in args.methods:
                measure(args, tiles, method, size, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--methods", nargs="+", choices=sorted(METHODS), default=COMPARED, metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--train", type=positive, default=300, help="good tiles to fit on; default: 300")
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--image-sizes", nargs="+", type=int, default=[0], metavar="PIXELS",
        help="default: 0, the backbone's own")  # fmt: skip
    add("--backbone", default="embedded")
    add("--pretrained", default=True, metavar="FILE", help="a checkpoint of the backbone")
    add("--dtype", choices=["float32", "bfloat16", "auto"], default="float32",
        help="of the backbone; default: float32")  # fmt: skip
    add("--memory", type=Path, default=None, help="folder to remember in")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load_tiles(folder: Path) -> Bunch:
    """Paths: `good` tiles, those with a defect and their masks, both dicts by kind."""
    kinds = sorted(path.name for path in folder.glob("defect/*") if path.is_dir())
    if not kinds:
        raise DataError(f"no folder {folder}/defect/KIND; --data needs good/ and defect/KIND/")
    defects = {kind: images_in(folder / "defect" / kind) for kind in kinds}
    masks = {
        kind: [str(folder / "mask" / kind / f"{Path(path).stem}.png") for path in paths]
        for kind, paths in defects.items()
    }
    return Bunch(good=images_in(folder / "good"), defects=defects, masks=masks)


def split_good(tiles: Bunch, n_train: int, seed: int) -> tuple[list[str], list[str]]:
    """Good tiles to fit on, and the others."""
    order = np.random.default_rng(seed).permutation(tiles.good).tolist()
    return order[:n_train], order[n_train:]


def measure(args: argparse.Namespace, tiles: Bunch, method: str, size: int, seed: int) -> None:
    train, others = split_good(tiles, args.train, seed)
    detector = make_method(
        method, backbone=args.backbone, pretrained=args.pretrained, image_size=size or None,
        random_state=seed, n_jobs=1, memory=args.memory, dtype=args.dtype,
    )  # fmt: skip
    detector.fit(train)
    defective = [path for paths in tiles.defects.values() for path in paths]
    abnormality = -detector.score_samples([*others, *defective])
    normal, abnormal = abnormality[: len(others)], abnormality[len(others) :]
    ends = np.cumsum([len(paths) for paths in tiles.defects.values()])
    by_kind = dict(zip(tiles.defects, np.split(abnormal, ends[:-1]), strict=True))
    figures = {kind: compare(normal, scores) for kind, scores in by_kind.items()}
    name = name_in(args.dtype, method)
    for kind, measured in figures.items():
        case = {"backbone": args.backbone, "image_size": size or "own", "kind": kind,
                "method": name, "seed": seed, "n_train": len(train)}  # fmt: skip
        values = {figure: round(value, 5) for figure, value in measured.items()}
        merge_csv(args.output, case | values, KEY)
    aurocs = [100 * measured["auroc"] for measured in figures.values()]
    shown = " ".join(f"{value:9.1f}" for value in [*aurocs, np.mean(aurocs)])
    print(f"{name:<16} {size or 'own':>4} {seed:>4} {shown}", flush=True)


def compare(normal: np.ndarray, abnormal: np.ndarray) -> dict[str, Any]:
    is_defect = np.repeat([0, 1], [len(normal), len(abnormal)])
    abnormality = np.concatenate([normal, abnormal])
    return {
        "n_normal": len(normal),
        "n_anomalies": len(abnormal),
        "auroc": roc_auc_score(is_defect, abnormality),
        "average_precision": average_precision_score(is_defect, abnormality),
    }


if __name__ == "__main__":
    main()
