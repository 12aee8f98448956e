"""Measure how far a saved model scores the same elsewhere, by `skanomaly verify`.

A detector learns from solar cells in each floating type, is saved, and `skanomaly verify` compares
it in processes with other numbers of threads, batch sizes, instructions of the processor (as far as
torch can leave them out) and, in float32, as an ONNX file. `--python` names interpreters of
environments with other versions of Python and of packages: each verifies the files that this one
has written, and fits and saves a model that this one verifies. `--devices` names other devices.
`--table` prints the table of docs/explanation/reproducibility.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit._utils.stages import rounded_up
from skanomaly_vit.onnx import export_onnx

#: Ways to have torch leave instructions out.
PROCESSORS = {
    "no AVX-512": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
                   "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "no AVX": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
               "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}  # fmt: skip

#: Program that prints with which versions an environment computes.
VERSIONS = """
import platform, onnxruntime, sklearn, torch
print(f"Python {platform.python_version()}, scikit-learn {sklearn.__version__}",
      f"torch {torch.__version__.partition('+')[0]}", sep=", ")
print(f"ONNX Runtime {onnxruntime.__version__}")
"""

STAGES = ("decoding", "resizing", "backbone", "students", "densities", "graph")


def main() -> None:
    args = parse_args()
    if args.table:
        print("\n".join(table(args.output)))
        return
    if args.save:
        save(args, args.dtypes[0], args.save)
        return
    print_circumstances(args.seed)
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.skanomaly"
            detector = save(args, dtype, model)
            for way, found in ways(args, detector, model):
                report(args, dtype, way, found)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=positive, default=80, help="images to fit on; default: 80")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], metavar="TYPE")
    add("--python", nargs="*", default=[], metavar="PATH", help="of other environments")
    add("--devices", nargs="*", default=[], help="such as cuda or mps")
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, metavar="CSV", help="where rows are written, or replaced")
    add("--table", action="store_true", help="measure nothing: print the table of a CSV")
    add("--save", type=Path, metavar="MODEL", help="measure nothing: fit one model and save it")
    args = parser.parse_args()
    if args.save and len(args.dtypes) != 1:
        parser.error("--save needs one type: --dtypes float32")
    if not args.save and not args.output:
        parser.error("--output CSV is missing")
    return args


def save(args: argparse.Namespace, dtype: str, model: Path) -> TransformalyDetector:
    """Fit a detector to solar cells, and save it."""
    cells = datasets.load_elpv()
    normal = np.random.default_rng(args.seed).permutation(cells.images[cells.y == 1])
    detector = TransformalyDetector(dtype=dtype, device="cpu", random_state=args.seed)
    detector.fit(list(normal[: args.train])).save(model)
    return detector


def ways(
    args: argparse.Namespace, detector: TransformalyDetector, model: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each way, and what `skanomaly verify` says."""
    for n in (1, 2):
        yield f"{n} thread{'s' * (n > 1)}", verify(model, OMP_NUM_THREADS=str(n))
    for size in (1, 2, 100):
        yield f"batch size {size}", verify(model, "--batch-size", str(size))
    for name, environment in PROCESSORS.items():
        yield name, verify(model, **environment)
    for device in args.devices:
        yield f"device {device}", verify(model, "--device", device)
    exported = None
    if detector.dtype_ == "float32":
        exported = export_onnx(detector, model.with_suffix(".onnx"))
        yield "ONNX Runtime", verify(exported)
    for python in args.python:
        yield from across(args, detector, model, exported, python)


def across(
    args: argparse.Namespace,
    detector: TransformalyDetector,
    model: Path,
    exported: Path | None,
    python: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of this environment in another one, and a model of the other one in this."""
    command = [python, "-c", VERSIONS]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    versions, runtime = done.stdout.splitlines()
    yield f"scored with {versions}", verify(model, python=python)
    if exported:
        yield runtime, verify(exported, python=python)
    saved = model.with_name("elsewhere.skanomaly")
    options = {"--dtypes": detector.dtype_, "--train": args.train, "--seed": args.seed}
    command = [python, __file__, "--save", str(saved)]
    subprocess.run(command + [str(each) for pair in options.items() for each in pair], check=True)
    yield f"saved with {versions}", verify(saved)


def verify(
    model: Path, *options: str, python: str = sys.executable, **environment: str
) -> dict[str, Any]:
    command = [python, "-m", "skanomaly_vit", "verify", str(model), "--json", *options]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment, check=False
    )
    return json.loads(done.stdout)


def report(args: argparse.Namespace, dtype: str, way: str, found: dict[str, Any]) -> None:
    of_stages = {stage["name"]: f"{stage['difference']:.2g}" for stage in found["stages"]}
    figures = {
        "same": found["same"],
        "in_deviations": f"{found['difference']:.2g}",
        "first": found["first"] or "none",
        **{name: of_stages.get(name, "") for name in STAGES},
    }
    print(f"{dtype:<10} {way:<14}", *(f"{k} {v}" for k, v in figures.items()), flush=True)
    merge_csv(args.output, {"dtype": dtype, "way": way} | figures, ("dtype", "way"))


def table(path: Path) -> list[str]:
    """Lines of the table of a CSV: scores, and the stages that are not the same to the bit."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = ["| type | elsewhere | scores | stages that round otherwise |", "|---|---|---|---|"]
    for row in rows:
        apart = [f"{s} {rounded_up(float(row[s]))}" for s in STAGES if float(row[s] or 0)]
        difference = float(row["in_deviations"])
        scores = f"to {rounded_up(difference)}" if difference else "to the bit"
        lines.append(f"| {row['dtype']} | {row['way']} | {scores} | {', '.join(apart)} |")
    return lines


if __name__ == "__main__":
    main()
