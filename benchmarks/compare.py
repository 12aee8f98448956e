"""Measure detectors class by class, on equal terms, and write every figure to a CSV file.

Each method is evaluated by `skanomaly_vit.evaluation.one_vs_rest`, with each class in turn the
normal one (unimodal) or the anomaly (multimodal). `--memory` keeps results: a run that was cut off
resumes where it stopped, and methods share tokens and students. A repeated run replaces its rows of
the CSV file.

The paper's backbone is `--backbone vit_base_patch16_384.augreg_in21k_ft_in1k`.
"""

from __future__ import annotations

import argparse
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from methods import METHODS, make_method, name_in

from skanomaly_vit import DiskCache, ViTFeatures, datasets
from skanomaly_vit.evaluation import one_vs_rest

KEY = ("dataset", "setting", "method", "seed", "class")


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    print_circumstances(args.seeds[0])
    circumstances = describe(args)
    for seed in args.seeds:
        data = load(args, seed)
        for method in args.methods:
            for setting in args.settings:
                measure(args, circumstances, data, method, setting, seed)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="train/<class>/, test/<class>/, or IDX files")
    add("--name", required=True, help="what the data set is called in the CSV file")
    add("--methods", nargs="+", choices=sorted(METHODS), default=["transformaly"], metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--settings", nargs="+", choices=["unimodal", "multimodal"],
        default=["unimodal", "multimodal"])  # fmt: skip
    add("--classes", nargs="+", default=None, help="those that take their turn; default: all")
    add("--train", type=positive, default=500, help="training images a class; default: 500")
    add("--test", type=positive, default=100, help="test images a class; default: 100")
    add("--seeds", nargs="+", type=not_negative, default=[0], help="of draws and methods")
    add("--backbone", default="embedded", help="default: embedded")
    add("--pretrained", default=True, metavar="FILE", help="a checkpoint of the backbone")
    add("--dtype", choices=["float32", "bfloat16", "auto"], default="float32",
        help="of the backbone; default: float32")  # fmt: skip
    add("--image-size", type=positive, default=None, help="default: the backbone's")
    add("--memory", type=Path, default=None, help="folder to remember in")
    add("--memory-bytes", type=positive, default=40 * 2**30, help="default: 40 GiB")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser


def load(args: argparse.Namespace, seed: int) -> Any:
    """Images of all classes, drawn by the seed."""
    if list(Path(args.data).glob("*-ubyte*")):
        return draw(datasets.load_fashion_mnist(args.data), args, seed)
    return draw(datasets.load_image_folder(args.data), args, seed)


def draw(data: Any, args: argparse.Namespace, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    for images, labels, count in (
        ("images", "labels", args.train),
        ("test_images", "test_labels", args.test),
    ):
        chosen = np.concatenate(
            [
                rng.permutation(np.flatnonzero(data[labels] == name))[:count]
                for name in np.unique(data[labels])
            ]
        )
        data[images], data[labels] = data[images][chosen], data[labels][chosen]
    return data


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Circumstances to quote with a figure."""
    blank = np.zeros((1, 8, 8, 3), np.uint8)
    features = ViTFeatures(
        backbone=args.backbone,
        pretrained=args.pretrained,
        image_size=args.image_size,
        dtype=args.dtype,
    ).fit(blank)
    size = features._held_teacher().preprocessing.image_size
    return {
        "backbone": args.backbone,
        "weights": features.backbone_fingerprint_[:12],
        "image_size": size[0],
        "commit": commit(),
    }


def commit() -> str:
    """Commit of this script, with a + if files have changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    folder = Path(__file__).parent
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def measure(
    args: argparse.Namespace,
    circumstances: dict[str, Any],
    data: Any,
    method: str,
    setting: str,
    seed: int,
) -> None:
    memory = DiskCache(args.memory, max_bytes=args.memory_bytes) if args.memory else None
    shared = {
        "backbone": args.backbone,
        "pretrained": args.pretrained,
        "image_size": args.image_size,
        "random_state": seed,
        "memory": memory,
        "dtype": args.dtype,
    }
    name = name_in(args.dtype, method)
    case = {"dataset": args.name, "setting": setting, "method": name, "seed": seed}
    table = one_vs_rest(
        make_method(method, **shared),
        data.images,
        data.labels,
        setting=setting,
        test_images=data.test_images,
        test_labels=data.test_labels,
        classes=args.classes,
        memory=memory,
        callback=partial(write, args.output, case, circumstances),
    )
    print(f"{args.name} {setting} {name} seed {seed}: mean AUROC "
          f"{100 * table.loc['mean', 'auroc']:.1f}", flush=True)  # fmt: skip


def write(
    path: Path, case: dict[str, Any], circumstances: dict[str, Any], row: dict[str, Any]
) -> None:
    figures = {k: round(v, 5) for k, v in row.items() if k != "class"}
    merge_csv(path, case | {"class": row["class"]} | figures | circumstances, KEY)


if __name__ == "__main__":
    main()
