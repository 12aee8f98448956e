"""Processor seconds of `skanomaly score` and `skanomaly info`, from the start of Python to the end.

One image is scored by a `.skanomaly` file and by an `.onnx` file of one model, in a new process
each time; seconds are those of user and system, of all threads, as the system counts them for the
process. *first line* is the time until the first line is on the terminal, with a clock. The sides
take turns; medians count.
"""

from __future__ import annotations

import argparse
import os
import pty
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from harness import append_csv, positive, print_circumstances
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive, default=5, help="default: 5")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    print_circumstances(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        image, models = make(Path(folder))
        runs = {
            (command, model.suffix): [command, str(model), *images]
            for command, images in (("score", [image]), ("info", []))
            for model in models
        }
        seconds: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in runs}
        for _ in range(options.repeats):
            for key, arguments in runs.items():
                seconds[key].append(run(arguments))
    if options.csv:
        options.csv.unlink(missing_ok=True)
    for (command, suffix), found in seconds.items():
        cpu, first = (round(statistics.median(column), 2) for column in zip(*found, strict=True))
        row = {"command": command, "model": suffix, "cpu_s": cpu, "first_line_s": first}
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        if options.csv:
            append_csv(options.csv, row)


def make(folder: Path) -> tuple[str, list[Path]]:
    """An image, and a model of a default fit in both kinds of files."""
    from skanomaly_vit import TransformalyDetector
    from skanomaly_vit.onnx import export_onnx

    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (40, 112, 112, 3)) + rng.integers(40, 160, (40, 1, 1, 3))
    image = folder / "1.png"
    Image.fromarray(images[0].astype(np.uint8)).save(image)
    detector = TransformalyDetector(random_state=0, contamination=0.2)
    detector.fit(images.astype(np.uint8))
    models = [folder / "parts.skanomaly", folder / "parts.onnx"]
    detector.save(models[0])
    export_onnx(detector, models[1])
    return str(image), models


def run(arguments: list[str]) -> tuple[float, float]:
    """Processor seconds of a command, and seconds until its first line on a terminal."""
    reader, terminal = pty.openpty()
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "skanomaly_vit", *arguments], stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    os.read(reader, 1)
    first = perf_counter() - start
    try:
        while os.read(reader, 4096):
            pass
    except OSError:  # Linux: the other end is closed
        pass
    _, status, usage = os.wait4(process.pid, 0)
    os.close(reader)
    if status:
        raise SystemExit(f"skanomaly {' '.join(arguments)} ended with {status}")
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime, first


if __name__ == "__main__":
    main()
