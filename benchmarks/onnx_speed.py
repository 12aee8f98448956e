"""Cost of a detector in ONNX Runtime, in float32 and int8: rate, size, AUROC and false alarms.

All sides are of one fitted detector, on the same test images:

- *torch*: `TransformalyDetector.score_samples`;
- *onnx*: `OnnxDetector.score_samples` of a file from `export_onnx`;
- *onnx int8*: the same of a file from `export_onnx(quantize="int8")`.

Normal images are split into those that the detector learns from, those that calibrate, of all
sides, and those of the test; *images_per_s* are per second of processor time, which other
work on the machine distorts less: medians of `score_samples` over repeats in which the sides take
turns, on images in memory, so run it with one thread; *of_onnx* compares with *onnx*. AUROC is the
mean over kinds of anomalies. *flagged* is the share of normal test images below the threshold of
the side, *low* and *high* its exact interval of 95 %, and *asked* the rate of the threshold.
*noise* is the standard deviation of the differences from torch on normal test images, in that of
their scores, and *largest* the largest difference on any test image.

With `--inside`, only a box in the middle of each image counts; with `--tiles`, images are cut.

`--data` is a folder with `good/` and `defect/KIND/`, or `elpv` for monocrystalline solar cells
(`skanomaly_vit.datasets.load_elpv`), by probability of a defect.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import harness
import numpy as np
import torch
from magnetic_tiles import load_tiles
from PIL import Image
from sklearn.metrics import roc_auc_score

from skanomaly_vit import MaskedImages, TransformalyDetector, datasets
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.evaluation._intervals import share_interval
from skanomaly_vit.onnx import OnnxDetector, export_onnx

COLUMNS: harness.Columns = {
    "data": ("<15", ""),
    "side": ("<10", ""),
    "images_per_s": (">12", ".1f"),
    "of_onnx": (">8", ".2f"),
    "file_mb": (">8", ".1f"),
    "auroc": (">7", ".2f"),
    "noise": (">8", ".1e"),
    "largest": (">8", ".1e"),
    "asked": (">6", ".3f"),
    "flagged": (">8", ".3f"),
    "low": (">6", ".3f"),
    "high": (">6", ".3f"),
}


def main() -> None:
    args = make_parser().parse_args()
    harness.print_circumstances(args.seed)
    harness.print_titles(COLUMNS)
    good, defects = load(args.data)
    order = np.random.default_rng(args.seed).permutation(good).tolist()
    train, rest = order[: args.train], order[args.train :]
    calibrating, test = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(train, calibrating, test, defects, Path(folder), args)
    for row in rows:
        row = {"data": Path(args.data).name, **row}
        harness.print_row(COLUMNS, row)
        if args.csv is not None:
            counts = {"train": len(train), "calibrating": len(calibrating), "normal": len(test),
                      "anomalies": sum(map(len, defects.values())), "seed": args.seed}  # fmt: skip
            harness.append_csv(args.csv, rounded(row) | counts)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="or elpv")
    parser.add_argument("--train", type=harness.positive, default=300, help="default: 300")
    parser.add_argument("--repeats", type=harness.positive, default=5, help="default: 5")
    parser.add_argument("--timed", type=harness.positive, default=64, help="images; default: 64")
    parser.add_argument(
        "--inside", type=float, metavar="SHARE", help="of each side that counts; default: all"
    )
    parser.add_argument("--tiles", type=harness.positive, nargs=2, metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--seed", type=harness.not_negative, default=0, help="default: 0")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    return parser


def load(data: str) -> tuple[list[str], dict[str, list[str]]]:
    """Paths of normal images, and of anomalies by kind."""
    if data != "elpv":
        tiles = load_tiles(Path(data))
        return tiles.good, tiles.defects
    cells = datasets.load_elpv()
    images = np.array(cells.images, dtype=object)
    of_module = cells.module_type == "mono"

    def chosen(probability: float) -> list[str]:
        near = np.isclose(cells.defect_probability, probability, atol=0.01)
        return images[of_module & near].tolist()

    return chosen(0), {f"{p:.2f}": chosen(p) for p in (1 / 3, 2 / 3, 1)}


def measure(
    train: list[str],
    calibrating: list[str],
    test: list[str],
    defects: dict[str, list[str]],
    folder: Path,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    def framed(images: list[Any]) -> Any:
        return images if args.inside is None else MaskedImages(images, boxes(images, args.inside))

    tiles = None if args.tiles is None else tuple(args.tiles)
    detector = TransformalyDetector(random_state=args.seed, tiles=tiles).fit(framed(train))
    detector.calibrate(framed(calibrating), replace=True)  # the images of all sides
    files = {side: folder / side for side in ("torch", "onnx", "onnx int8")}
    detector.save(files["torch"])
    takes_regions = args.inside is not None
    export_onnx(detector, files["onnx"], takes_regions=takes_regions)
    fresh = TransformalyDetector.load(files["torch"])
    export_onnx(
        fresh,
        files["onnx int8"],
        quantize="int8",
        calibration_images=framed(calibrating),
        takes_regions=takes_regions,
    )
    sides: dict[str, Any] = {"torch": detector}
    for side in ("onnx", "onnx int8"):
        sides[side] = OnnxDetector.load(files[side], n_threads=torch.get_num_threads())
    source = open_images(test)
    timed = framed([source[i] for i in range(min(args.timed, len(test)))])
    seconds = take_turns({k: side.score_samples for k, side in sides.items()}, timed, args.repeats)
    abnormal = [path for paths in defects.values() for path in paths]
    scores = {k: side.score_samples(framed([*test, *abnormal])) for k, side in sides.items()}
    rates = {k: len(timed) / statistics.median(values) for k, values in seconds.items()}
    return [
        {
            "side": name,
            "images_per_s": rates[name],
            "of_onnx": rates[name] / rates["onnx"],
            "file_mb": files[name].stat().st_size / 1e6,
            "auroc": mean_auroc(scores[name], len(test), defects),
            "noise": noise(scores[name][: len(test)], scores["torch"][: len(test)]),
            "largest": largest(scores[name], scores["torch"], len(test)),
            "asked": side.contamination_,
            **false_alarms(scores[name][: len(test)], side.offset_),
        }
        for name, side in sides.items()
    ]


def take_turns(
    score: dict[str, Callable[[Any], np.ndarray]], images: Any, repeats: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in score}
    for run in score.values():  # once to warm up
        run(images)
    for _ in range(repeats):
        for side, run in score.items():
            start = process_time()
            run(images)
            seconds[side].append(process_time() - start)
    return seconds


def mean_auroc(scores: np.ndarray, n_normal: int, defects: dict[str, list[str]]) -> float:
    normal, abnormal = np.split(scores, [n_normal])
    ends = np.cumsum([len(paths) for paths in defects.values()])
    kinds = np.split(abnormal, ends[:-1])
    return 100 * float(np.mean([auroc(normal, of_kind) for of_kind in kinds]))


def auroc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    is_normal = np.repeat([1, 0], [len(normal), len(abnormal)])
    return float(roc_auc_score(is_normal, np.concatenate([normal, abnormal])))


def noise(scores: np.ndarray, reference: np.ndarray) -> float:
    return float(np.std(scores - reference) / np.std(reference))


def largest(scores: np.ndarray, reference: np.ndarray, n_normal: int) -> float:
    return float(np.abs(scores - reference).max() / np.std(reference[:n_normal]))


def boxes(images: list[Any], share: float) -> list[np.ndarray]:
    """The box in the middle of each image that counts, a share of each side."""
    sizes = [i.shape[:2] if isinstance(i, np.ndarray) else Image.open(i).size[::-1] for i in images]
    return [box(size, share) for size in sizes]


def box(size: tuple[int, int], share: float) -> np.ndarray:
    top, left = (round(side * (1 - share) / 2) for side in size)
    mask = np.zeros(size, bool)
    mask[top : size[0] - top, left : size[1] - left] = True
    return mask


def false_alarms(scores: np.ndarray, threshold: float) -> dict[str, float]:
    n_flagged = int((scores < threshold).sum())
    low, high = share_interval(n_flagged, len(scores), 0.95)
    return {"flagged": n_flagged / len(scores), "low": low, "high": high}


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


if __name__ == "__main__":
    main()
