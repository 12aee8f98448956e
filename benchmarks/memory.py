"""Peak resident memory of `fit` and `score_samples` at growing numbers of JPEG files.

Each number of images runs in a process of its own. The peak is that of the whole process, Python
and torch included, as the system counts it. Many files are links to a few: the process reads,
decodes and keeps as much. The tiny backbone, of random weights, runs the same code as any other, in
a fraction of the time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import append_csv, peak_memory, positive, print_circumstances
from PIL import Image

#: Bytes of tokens that `fit` may keep: a constant too, but larger numbers of images fill it.
ACTIVATION_CACHE = 2**24


def main() -> None:
    options = parse()
    if options.worker:
        work(*options.worker)
        return
    print_circumstances(seed=0)
    print(
        f"activation_cache={ACTIVATION_CACHE}, {options.distinct} different JPEG files of "
        f"{options.side} x {options.side} pixels, the others are links to them"
    )
    if options.csv:
        options.csv.unlink(missing_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [("tiny", n) for n in options.sizes] + [("embedded", n) for n in options.embedded]
        make_files(Path(folder), max(n for _, n in sizes), options.distinct, options.side)
        for backbone, n in sizes:
            for row in measure(folder, backbone, n, min(n, options.distinct)):
                rows.append(row)
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                if options.csv:
                    append_csv(options.csv, row)
    report_growth(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--sizes", type=positive, nargs="*", default=[1_000, 10_000, 100_000],
        help="numbers of images for the tiny backbone")  # fmt: skip
    add("--embedded", type=positive, nargs="*", default=[1_000],
        help="numbers of images for the embedded backbone")  # fmt: skip
    add("--distinct", type=positive, default=1_000, help="different files among them")
    add("--side", type=positive, default=32, help="pixels of a side of an image")
    add("--csv", type=Path, help="write the rows to this file")
    add("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_files(folder: Path, n_files: int, n_distinct: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(min(n_files, n_distinct)):
        noise = rng.integers(0, 60, (side, side, 3)) + rng.integers(40, 160, 3)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i:07}.jpg", quality=90)
    for i in range(n_distinct, n_files):
        os.link(folder / f"{i % n_distinct:07}.jpg", folder / f"{i:07}.jpg")


def measure(folder: str, backbone: str, n_images: int, n_distinct: int) -> list[dict[str, object]]:
    """Peak after each step, in a new process."""
    arguments = [sys.executable, __file__, "--worker", folder, backbone, str(n_images)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    known = {"backbone": backbone, "n_images": n_images, "n_distinct": n_distinct}
    return [
        known | dict(zip(("step", "seconds", "peak_mb"), line.split(), strict=True))
        for line in done.stdout.splitlines()
    ]


def work(folder: str, backbone: str, n_images: str) -> None:
    """Fit and score, and print the peak and the seconds of each."""
    from skanomaly_vit import TransformalyDetector

    paths = np.array([os.path.join(folder, f"{i:07}.jpg") for i in range(int(n_images))])
    options = {"backbone": tiny()} if backbone == "tiny" else {}
    detector = TransformalyDetector(
        **options,
        n_blocks=2,
        batch_size=64,
        activation_cache=ACTIVATION_CACHE,
        n_jobs=1,
        random_state=0,
    )
    for step in (detector.fit, detector.score_samples):
        started = time.perf_counter()
        step(paths)
        seconds = time.perf_counter() - started
        print(step.__name__, f"{seconds:.1f}", f"{peak_memory():.1f}", flush=True)


def tiny() -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
        pretrained=False,
    )


def report_growth(rows: list[dict[str, object]]) -> None:
    """Print the growth of the peak from the second largest number to the largest."""
    tiny_rows = [row for row in rows if row["backbone"] == "tiny"]
    sizes = sorted({row["n_images"] for row in tiny_rows})
    if len(sizes) < 2:
        return
    for step in ("fit", "score_samples"):
        peak = {row["n_images"]: float(row["peak_mb"]) for row in tiny_rows if row["step"] == step}
        growth = 100 * (peak[sizes[-1]] / peak[sizes[-2]] - 1)
        print(f"{step}: {growth:+.1f} % from {sizes[-2]} to {sizes[-1]} images (target: < 5 %)")


if __name__ == "__main__":
    main()
