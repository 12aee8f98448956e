"""Compare the rate of `score_samples` with the bare backbone's, in one run.

All sides see the same images, batches and threads, interleaved and repeated; medians count:

- *bare*: the backbone's forward pass on normalized tensors in memory;
- *bare, bf16*, *bare, compiled*: the same under `torch.autocast`, and through `torch.compile` (only
  with `--compile`; it needs a C++ compiler), to see whether they pay on this machine;
- *two networks*: the evaluation in the paper's code, one pass of the backbone for its features and
  another, block by block beside all students, for the discrepancies;
- *default*: `score_samples` of the detector with its defaults, on decoded images in memory;
- *ridge*, *block*: the same with students of ten blocks of either kind;
- *ridge, paths*: the same from JPEG files on disk.

With `--dtype bfloat16`, all networks work in bfloat16 but those of *bare, float32* and of *default,
float32*, which show what is gained. `--sides` measures some of the sides alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from harness import positive, print_circumstances
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.distillation import BlockStudent


def main() -> None:
    args = make_parser().parse_args()
    print_circumstances(seed=0)
    rng = np.random.default_rng(0)
    size = (args.images, args.size, args.size, 3)
    images = rng.integers(0, 256, size, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(images, save(images, Path(folder)), args)
        chosen = sides if args.sides is None else {k: sides[k] for k in ["bare", *args.sides]}
        seconds = measure(chosen, args.repeats)
    bare = args.images / statistics.median(seconds["bare"])
    print(f"{args.images} images of {args.size} px, batches of {args.batch_size}, {args.dtype}\n")
    print(f"{'side':<16} {'images_per_s':>12} {'of bare':>8}")
    for side, times in seconds.items():
        rate = args.images / statistics.median(times)
        print(f"{side:<16} {rate:12.1f} {rate / bare:8.2f}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=128, help="default: 128")
    parser.add_argument("--size", type=positive, default=112, help="pixels; default: 112")
    parser.add_argument("--batch-size", type=positive, default=32, help="default: 32")
    parser.add_argument("--repeats", type=positive, default=5, help="default: 5")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                        help="of the backbone; default: float32")  # fmt: skip
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="default: all")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    return parser


def save(images: np.ndarray, folder: Path) -> list[str]:
    paths = [str(folder / f"{i}.jpg") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path, quality=95)
    return paths


def make_sides(
    images: np.ndarray, paths: list[str], args: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    few, batch_size = images[:16], args.batch_size
    plain = {"batch_size": batch_size, "random_state": 0}
    default = TransformalyDetector(dtype=args.dtype, **plain).fit(few)
    options = {"n_blocks": 10, "dtype": args.dtype, **plain}
    ridge = TransformalyDetector(student="ridge", **options).fit(few)
    block = TransformalyDetector(student=BlockStudent(max_epochs=1), **options).fit(few)
    model = ridge.features_._teacher.model
    students = TransformalyDetector(
        student=BlockStudent(max_epochs=1), **options | {"n_blocks": None}
    ).fit(few)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    normalized = tensors.sub(0.45).div(0.225)
    batches = list(normalized.to(next(model.parameters()).dtype).split(batch_size))
    in_float32 = {}
    if args.dtype != "float32":
        former = TransformalyDetector(**plain).fit(few)
        in_float32 = {
            "bare, float32": lambda: run_bare(
                former.features_._teacher.model, normalized.split(batch_size)
            ),
            "default, float32": lambda: former.score_samples(images),
        }
    compiled = {}
    if args.compile:
        fast = torch.compile(model)
        run_bare(fast, batches)
        compiled = {"bare, compiled": lambda: run_bare(fast, batches)}
    return {
        "bare": lambda: run_bare(model, batches),
        "bare, bf16": lambda: run_in_bf16(model, batches),
        **compiled,
        **in_float32,
        "two networks": lambda: run_two(model, students.distillation_.students_, batches),
        "default": lambda: default.score_samples(images),
        "ridge": lambda: ridge.score_samples(images),
        "block": lambda: block.score_samples(images),
        "ridge, paths": lambda: ridge.score_samples(paths),
    }


@torch.inference_mode()
def run_bare(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        model(batch)


def run_in_bf16(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        run_bare(model, batches)


@torch.inference_mode()
def run_two(
    model: torch.nn.Module, students: list[torch.nn.Module], batches: list[torch.Tensor]
) -> None:
    run_bare(model, batches)
    for batch in batches:
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(batch)))
        for block, student in zip(model.blocks, students, strict=True):
            target = block(tokens)
            (student(tokens) - target).square().mean(dim=(1, 2))
            tokens = target


def measure(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            start = perf_counter()
            run()
            seconds[side].append(perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
