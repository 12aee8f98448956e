"""One table of speed by dtype and runtime, in one run.

The detector of a default fit scores the same images, in memory, in torch (float32, bfloat16) and in
ONNX Runtime (float32, int8), beside the bare backbone's forward pass in torch. Sides take turns;
medians count, per second of processor time, which other work on the machine distorts less: run it
with one thread. *of bare* compares with the bare backbone in float32. On processors without
instructions for bfloat16 its sides are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from harness import append_csv, positive, print_circumstances

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone.precision import has_fast_bfloat16
from skanomaly_vit.onnx import OnnxDetector, export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=64, help="default: 64")
    parser.add_argument("--repeats", type=positive, default=7, help="default: 7")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    print_circumstances(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(Path(folder), args.images)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(args.repeats + 1):
        for side, run in sides.items():
            start = process_time()
            run()
            if turn:  # the first one warms up
                seconds[side].append(process_time() - start)
    rates = {side: args.images / statistics.median(times) for side, times in seconds.items()}
    if args.csv:
        args.csv.unlink(missing_ok=True)
    print(f"{'side':<24} {'images_per_s':>12} {'of bare':>8}")
    for side, rate in rates.items():
        share = rate / rates["bare, torch float32"]
        print(f"{side:<24} {rate:12.1f} {share:8.2f}")
        if args.csv:
            row = {"side": side, "images_per_s": f"{rate:.1f}", "of_bare": f"{share:.2f}"}
            append_csv(args.csv, row | {"threads": torch.get_num_threads()})


def make_sides(folder: Path, n_images: int) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(n_images, 80), 112, 112, 3), dtype=np.uint8)
    train, calibrating, timed = images[:40], images[40:80], images[:n_images]
    pixels = torch.from_numpy(timed).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.225)
    sides: dict[str, Callable[[], object]] = {}
    fitted = {}
    for dtype in ("float32", "bfloat16"):
        if dtype == "bfloat16" and not has_fast_bfloat16(torch.device("cpu")):
            continue
        detector = TransformalyDetector(dtype=dtype, contamination=0.2, random_state=0)
        fitted[dtype] = detector.fit(train)
        model = detector.features_._teacher.model
        batches = list(pixels.to(next(model.parameters()).dtype).split(32))
        sides[f"bare, torch {dtype}"] = bare_side(model, batches)
    for dtype, detector in fitted.items():
        sides[f"detector, torch {dtype}"] = score_side(detector, timed)
    for kind, options in (
        ("float32", {}),
        ("int8", {"quantize": "int8", "calibration_images": calibrating}),
    ):
        path = export_onnx(fitted["float32"], folder / f"{kind}.onnx", **options)
        loaded = OnnxDetector.load(path, n_threads=torch.get_num_threads())
        sides[f"detector, ONNX {kind}"] = score_side(loaded, timed)
    return sides


def score_side(
    detector: TransformalyDetector | OnnxDetector, images: np.ndarray
) -> Callable[[], object]:
    return lambda: detector.score_samples(images)


def bare_side(model: torch.nn.Module, batches: list[torch.Tensor]) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            model(batch)

    return run


if __name__ == "__main__":
    main()
