"""Measure detectors on the solar cells of elpv-dataset, by type of module and probability.

Detectors learn from functional cells (probability of a defect 0) of one type. The test has other
functional cells of that type and the cells of one probability, 0.33, 0.67 or 1. *brightness* and
*contrast* are detectors that see nothing but the mean, or the standard deviation, of a cell's
pixels: they show how much of a figure comes from the light alone. `--equalize` gives every cell the
same mean and standard deviation before any detector sees it, so that light says nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from methods import METHODS, make_method, name_in
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skanomaly_vit import GaussianDensity, datasets
from skanomaly_vit.evaluation import evaluate

LIGHT = {"brightness": np.mean, "contrast": np.std}
KEY = ("dataset", "module", "probability", "method", "seed", "equalized")


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    cells = datasets.load_elpv()
    pixels = [np.asarray(Image.open(path), dtype=np.float32) / 255 for path in cells.images]
    if args.equalize:
        pixels = [equalize(image) for image in pixels]
    print(f"{'module':<6} {'probability':>11} {'method':<16} {'AUROC':>6}")
    for seed in args.seeds:
        for module in ("mono", "poly"):
            for method in [*LIGHT, *args.methods]:
                measure(args, cells, pixels, module, method, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=sorted(METHODS), default=["transformaly"], metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--train", type=positive, default=300, help="functional cells to fit on; default: 300")
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--backbone", default="embedded")
    add("--pretrained", default=True, metavar="FILE", help="a checkpoint of the backbone")
    add("--dtype", choices=["float32", "bfloat16", "auto"], default="float32",
        help="of the backbone; default: float32")  # fmt: skip
    add("--equalize", action="store_true", help="one mean and one deviation for all cells")
    add("--memory", type=Path, default=None, help="folder to remember in")
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def equalize(image: np.ndarray) -> np.ndarray:
    centered = (image - image.mean()) / max(float(image.std()), 1e-6)
    return np.clip(0.5 + 0.15 * centered, 0, 1)


def measure(
    args: argparse.Namespace, cells: Any, pixels: list[Any], module: str, method: str, seed: int
) -> None:
    of_module = cells.module_type == module
    functional = np.flatnonzero(of_module & (cells.defect_probability == 0))
    functional = np.random.default_rng(seed).permutation(functional)
    train, normal = functional[: args.train], functional[args.train :]
    for probability in (1 / 3, 2 / 3, 1.0):
        abnormal = np.flatnonzero(
            of_module & np.isclose(cells.defect_probability, probability, atol=0.01)
        )
        measured = evaluate(
            make(method, args, seed),
            [pixels[i] for i in train],
            [pixels[i] for i in (*normal, *abnormal)],
            np.repeat([1, -1], [len(normal), len(abnormal)]),
        )
        name = method if method in LIGHT else name_in(args.dtype, method)
        print(f"{module:<6} {probability:11.2f} {name:<16} {100 * measured['auroc']:6.1f}",
              flush=True)  # fmt: skip
        case = {"dataset": "elpv", "module": module, "probability": round(probability, 2),
                "method": name, "seed": seed, "equalized": args.equalize}  # fmt: skip
        merge_csv(args.output, case | {k: round(v, 5) for k, v in measured.items()}, KEY)


def make(method: str, args: argparse.Namespace, seed: int) -> Any:
    if method in LIGHT:
        light = FunctionTransformer(light_of, kw_args={"measure": LIGHT[method]})
        return make_pipeline(light, GaussianDensity())
    return make_method(
        method, backbone=args.backbone, pretrained=args.pretrained, random_state=seed,
        memory=args.memory, n_jobs=2, dtype=args.dtype,
    )  # fmt: skip


def light_of(images: list[np.ndarray], measure: Any) -> np.ndarray:
    return np.array([[measure(image)] for image in images])


if __name__ == "__main__":
    main()
