"""Run the loop of a quality engineer on magnetic tiles, by the commands that they would type.

Fit on 300 good tiles, evaluate on the others and on all defects, mark the worst false alarms as
fine, update, and compare both models on the images that neither has learned from. `--data` is a
folder as in `magnetic_tiles.py`. The script prints each command and what it says.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import images_in, not_negative, positive


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        lay_out(args)
        run("fit", "learn", "-o", "tiles.skanomaly")
        tested = ("--normal", "rest", "--anomaly", "defect")
        run("evaluate", "tiles.skanomaly", *tested)
        figures = json.loads(
            call("evaluate", "tiles.skanomaly", *tested, "--format", "json", "--worst", args.marks)
        )
        mark([alarm["path"] for alarm in figures["alarms"]])
        calibrate = ["--calibrate"] if args.calibrate else []
        run("update", "tiles.skanomaly", "-o", "tiles-2.skanomaly", "--marks", "marks.csv",
            *calibrate)  # fmt: skip
        run("evaluate", "tiles-2.skanomaly", *tested, "--leave-out-known", "--worst", 0)
        run("compare", "tiles.skanomaly", "tiles-2.skanomaly", *tested, "--leave-out-known",
            "--list", 0)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--train", type=positive, default=300, help="good tiles to fit on; default: 300")
    add("--marks", type=positive, default=5, help="false alarms to mark as fine; default: 5")
    add("--calibrate", action="store_true", help="let some of the marked images calibrate")
    add("--seed", type=not_negative, default=0)
    return parser.parse_args()


def lay_out(args: argparse.Namespace) -> None:
    """Link the tiles into folders `learn`, `rest` and `defect`."""
    data = args.data.resolve()
    good = images_in(data / "good")
    order = np.random.default_rng(args.seed).permutation(len(good))
    for folder, chosen in (("learn", order[: args.train]), ("rest", order[args.train :])):
        os.mkdir(folder)
        for i in chosen:
            os.symlink(Path(good[i]).resolve(), Path(folder) / Path(good[i]).name)
    os.symlink(data / "defect", "defect")


def mark(alarms: list[str]) -> None:
    with open("marks.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "mark", "note"))
        writer.writerows((path, "fine", "") for path in alarms)
    print(f"(marks.csv: the {len(alarms)} worst false alarms are marked fine)\n")


def run(*arguments: object) -> None:
    print(f"$ skanomaly {' '.join(map(str, arguments))}", flush=True)
    print(call(*arguments), flush=True)


def call(*arguments: object) -> str:
    command = [sys.executable, "-m", "skanomaly_vit", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
