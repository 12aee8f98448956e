"""Measure the reproducibility of scores: same bits, or how close.

A detector learns from solar cells and scores other cells. The script repeats that in other ways and
compares the scores: whether all bits are the same, the largest difference (absolute, and in
standard deviations of the scores), and Spearman's rank correlation. Rows with "fit" repeat the fit
as well; the others score with one saved model. `--python` names interpreters of
other environments (other versions of torch) in which the package is installed, `--devices` other
devices. With `--dtype bfloat16`, the other processor is one without instructions for it.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from PIL import Image
from scipy.stats import spearmanr

from skanomaly_vit import TransformalyDetector, datasets

#: Program that scores paths with a model, in a process of its own.
SCORE = """
import sys, numpy, torch
from skanomaly_vit import TransformalyDetector
model, paths, output, device = sys.argv[1:]
detector = TransformalyDetector.load(model)
if device:
    detector.set_params(device=device)
numpy.save(output, detector.score_samples(open(paths).read().split("\\n")))
print(torch.__version__.split("+")[0])
"""

#: Type of the backbone -> another processor, and the environment that makes one of this machine's.
OTHER_PROCESSORS = {
    "float32": ("no AVX", {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                           "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "bfloat16": ("no AVX-512", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
}  # fmt: skip


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    cells = datasets.load_elpv()
    normal = np.random.default_rng(args.seed).permutation(cells.images[cells.y == 1])
    train, test = list(normal[: args.train]), list(normal[args.train :][: args.test])
    with tempfile.TemporaryDirectory() as folder:
        reference = make(args).fit(train)
        expected = reference.score_samples(test)
        for way, scores in ways(args, Path(folder), reference, train, test):
            report(args, way, expected, scores)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=positive, default=200, help="images to fit on; default: 200")
    add("--test", type=positive, default=203, help="images to score; default: 203, no full batches")
    add("--student", choices=["ridge", "block"], default="ridge")
    add("--dtype", choices=["float32", "bfloat16"], default="float32",
        help="of the backbone; default: float32")  # fmt: skip
    add("--python", nargs="*", default=[], metavar="PATH", help="of other environments")
    add("--devices", nargs="*", default=[], help="such as cuda or mps")
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def make(args: argparse.Namespace, **changes: Any) -> TransformalyDetector:
    return TransformalyDetector(
        student=args.student, dtype=args.dtype, device="cpu", random_state=args.seed, **changes
    )


def ways(
    args: argparse.Namespace,
    folder: Path,
    reference: TransformalyDetector,
    train: list[str],
    test: list[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each way, and its scores."""
    yield "fit again", make(args).fit(train).score_samples(test)
    yield "fit with n_jobs=2", make(args, n_jobs=2).fit(train).score_samples(test)
    yield (
        "fit with activation_cache=0",
        make(args, activation_cache=0).fit(train).score_samples(test),
    )
    for times in ("empty", "full"):
        remembering = make(args, memory=folder / "memory").fit(train)
        yield f"fit with memory, {times}", remembering.score_samples(test)
    model, pickled = folder / "model.skanomaly", folder / "model.joblib"
    reference.save(model)
    joblib.dump(reference, pickled)
    yield "saved and loaded", TransformalyDetector.load(model).score_samples(test)
    yield "pickled", joblib.load(pickled).score_samples(test)
    yield "as PIL images", reference.score_samples([Image.open(path) for path in test])
    yield "as arrays", reference.score_samples([np.asarray(Image.open(path)) for path in test])
    yield "with scores and maps", reference.score_samples(test, return_map=True)[0]
    yield from neighbours(reference, test)
    yield from elsewhere(args, model, test)


def neighbours(
    reference: TransformalyDetector, test: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    order = np.random.default_rng(0).permutation(len(test))
    shuffled = np.empty(len(test))
    shuffled[order] = reference.score_samples([test[i] for i in order])
    yield "in another order", shuffled
    yield "one image a call", np.concatenate([reference.score_samples([path]) for path in test])
    for size in (1, 8, 100):
        resized = copy.copy(reference).set_params(batch_size=size)
        yield f"batch_size={size}", resized.score_samples(test)


def elsewhere(
    args: argparse.Namespace, model: Path, test: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    paths, output = model.with_suffix(".txt"), model.with_suffix(".npy")
    paths.write_text("\n".join(test))

    def score(python: str = sys.executable, device: str = "", **environment: str) -> str:
        command = [python, "-c", SCORE, str(model), str(paths), str(output), device]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        return done.stdout.strip()

    name, limits = OTHER_PROCESSORS[args.dtype]
    scored: list[tuple[str, Callable[[], str]]] = [
        ("another process", score),
        ("one thread", lambda: score(OMP_NUM_THREADS="1")),
        ("two threads", lambda: score(OMP_NUM_THREADS="2")),
        (name, lambda: score(**limits)),
        *((f"device {device}", lambda device=device: score(device=device))
          for device in args.devices),
    ]  # fmt: skip
    for way, run in scored:
        run()
        yield way, np.load(output)
    for python in args.python:
        version = score(python)
        yield f"torch {version}", np.load(output)


def report(args: argparse.Namespace, way: str, expected: np.ndarray, scores: np.ndarray) -> None:
    difference = float(np.abs(scores - expected).max())
    figures = {
        "same_bits": bool((scores == expected).all()),
        "max_difference": f"{difference:.2g}",
        "in_deviations": f"{difference / expected.std():.2g}",
        "rank_correlation": f"{spearmanr(scores, expected).statistic:.6f}",
    }
    print(f"{way:<30}", *(f"{name} {value}" for name, value in figures.items()), flush=True)
    merge_csv(args.output, {"student": args.student, "way": way} | figures, ("student", "way"))


if __name__ == "__main__":
    main()
