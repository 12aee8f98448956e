"""Cost of a detector in ONNX Runtime: rate, size and AUROC, in float32 and with int8 weights.

All sides are of one fitted detector, on the same test images, in memory:

- *torch*: `TransformalyDetector.score_samples`;
- *onnx*: `OnnxDetector.score_samples` of a file from `export_onnx`;
- *int8 weights*: the backbone's matrices stored as int8, one scale per column, computed in float32;
- *int8 products*: the backbone's matrix products in int8 (``onnxruntime.quantization``, dynamic);
- *int8 products, students too*: those of the students as well.

The package does not offer the last three: this script changes the exported graph. Rates are medians
over repeats in which the sides take turns. ``moved`` is the largest difference of a normal image's
score from torch, in standard deviations of the scores of normal test images. ``flagged`` is the
share of normal test images below the threshold of the float32 detector.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import harness
import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._images.source import open_images
from skanomaly_vit.onnx import OnnxDetector, export_onnx
from skanomaly_vit.onnx import _file as _onnx_file

COLUMNS: harness.Columns = {
    "class": ("<12", ""),
    "side": ("<28", ""),
    "images_per_s": (">12", ".1f"),
    "of_torch": (">8", ".2f"),
    "file_mb": (">8", ".1f"),
    "auroc": (">7", ".2f"),
    "moved": (">9", ".2g"),
    "rank": (">8", ".5f"),
    "flagged": (">8", ".3f"),
}


def main() -> None:
    args = make_parser().parse_args()
    harness.print_circumstances(args.seed)
    harness.print_titles(COLUMNS)
    folders = harness.find_classes(args.data)
    for name in harness.choose_classes(args.normal_class, folders["train"]):
        normal, _ = harness.split_classes(folders["train"], "unimodal", name)
        train = harness.sample(normal, args.train, args.seed)
        normal, abnormal = harness.split_classes(folders["test"], "unimodal", name)
        half = args.test // 2
        test = [
            path for part in (normal, abnormal) for path in harness.sample(part, half, args.seed)
        ]
        source = open_images(test)
        images = np.stack([source[i] for i in range(len(test))])
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(name, train, images, Path(folder), args):
                harness.print_row(COLUMNS, row)
                if args.csv is not None:
                    settings = {"train": args.train, "test": len(test), "seed": args.seed}
                    harness.append_csv(args.csv, rounded(row) | settings)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--normal-class", action="append", required=True, metavar="NAME")
    parser.add_argument("--train", type=harness.positive, default=500, help="default: 500")
    parser.add_argument("--test", type=harness.positive, default=400, help="default: 400")
    parser.add_argument("--repeats", type=harness.positive, default=5, help="default: 5")
    parser.add_argument("--timed", type=harness.positive, default=64, help="images; default: 64")
    parser.add_argument("--seed", type=harness.not_negative, default=0, help="default: 0")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    return parser


def measure(
    name: str, train: list[str], images: np.ndarray, folder: Path, args: argparse.Namespace
) -> list[dict[str, object]]:
    detector = TransformalyDetector(random_state=args.seed).fit(train)
    detector.save(folder / "torch")
    export_onnx(detector, folder / "onnx")
    store_as_int8(folder / "onnx", folder / "int8 weights")
    compute_in_int8(folder / "onnx", folder / "int8 products", students=False)
    compute_in_int8(folder / "onnx", folder / "int8 products, students too", students=True)
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_ctime_ns)
    score: dict[str, Callable[[np.ndarray], np.ndarray]] = {"torch": detector.score_samples}
    for path in files[1:]:
        loaded = OnnxDetector.load(path, n_threads=torch.get_num_threads())
        score[path.name] = loaded.score_samples
    seconds = take_turns(score, images[: args.timed], args.repeats)
    scores = {side: run(images) for side, run in score.items()}
    return [
        describe(name, path, scores, detector.offset_)
        | {
            "images_per_s": args.timed / statistics.median(seconds[path.name]),
            "of_torch": statistics.median(
                torch_s / own_s
                for torch_s, own_s in zip(seconds["torch"], seconds[path.name], strict=True)
            ),
        }
        for path in files
    ]


def take_turns(
    score: dict[str, Callable[[np.ndarray], np.ndarray]], images: np.ndarray, repeats: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in score}
    for run in score.values():  # once to warm up
        run(images)
    for _ in range(repeats):
        for side, run in score.items():
            start = perf_counter()
            run(images)
            seconds[side].append(perf_counter() - start)
    return seconds


def describe(
    name: str, path: Path, scores: dict[str, np.ndarray], threshold: float
) -> dict[str, object]:
    own, reference = scores[path.name], scores["torch"]
    half = len(own) // 2
    is_normal = np.arange(len(own)) < half
    return {
        "class": name,
        "side": path.name,
        "file_mb": path.stat().st_size / 1e6,
        "auroc": 100 * roc_auc_score(is_normal, own),
        "moved": float(np.abs(own - reference)[:half].max() / reference[:half].std()),
        "rank": float(spearmanr(own, reference).statistic),
        "flagged": float((own[:half] < threshold).mean()),
    }


def rounded(row: dict[str, object]) -> dict[str, object]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def products(model: onnx.ModelProto, *, students: bool) -> list[onnx.NodeProto]:
    """Matrix products with weights of the backbone, and of students."""
    float_weights = {
        weight.name
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT and not weight.name.startswith("maps.")
    }
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in float_weights
        and (students or not node.input[1].startswith("students."))
    ]


def store_as_int8(path: Path, target: Path) -> None:
    """Write a copy with the weights of products as int8, one scale per column."""
    model = onnx.load(path)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for name in {node.input[1] for node in products(model, students=False)}:
        values = onnx.numpy_helper.to_array(weights[name])  # [inputs, outputs]
        scale = np.abs(values).max(axis=0) / 127
        integers = np.rint(values / scale).astype(np.int8)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(integers, f"{name}.int8"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        model.graph.node.insert(
            0,
            onnx.helper.make_node(
                "DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=1
            ),
        )
    rewrite(model, target)


def compute_in_int8(path: Path, target: Path, *, students: bool) -> None:
    """Write a copy whose products are computed in int8."""
    model = onnx.load(path)
    chosen = [node.name for node in products(model, students=students)]
    quantize_dynamic(
        model, target, weight_type=QuantType.QInt8, per_channel=True, nodes_to_quantize=chosen
    )
    rewrite(onnx.load(target), target)


def rewrite(model: onnx.ModelProto, target: Path) -> None:
    """Write a changed graph as `export_onnx` would, with a valid checksum."""
    values = _onnx_file._read_values("", model)
    values.pop("sha256")
    del model.metadata_props[:]
    _onnx_file.write(target, model, values)


if __name__ == "__main__":
    main()
