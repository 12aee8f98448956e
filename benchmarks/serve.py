"""Measure `skanomaly serve` under load, and count rows of a `skanomaly watch` that is killed.

The images are solar cells of `elpv-dataset`, as PNG files; the model is fitted on others of them.
The service is a process of its own on this machine, asked by several clients at once, each with a
connection of its own. Its rate is compared with that of `score_samples` of the same model on the
same files, in the same process conditions: before and after the service, in turns.

Then `skanomaly watch` scores the cells while it is killed (SIGKILL) several times, and the rows of
its table are compared with the files.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from harness import positive, print_circumstances

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.onnx import export_onnx

N_TRAIN = 100
COMMAND = [sys.executable, "-m", "skanomaly_vit"]

#: Prints the images a second of `score_samples` on the files of a folder.
SCORING = """
import sys, time
from pathlib import Path
model, folder = sys.argv[1:]
if model.endswith(".onnx"):
    from skanomaly_vit.onnx import OnnxDetector as Detector
else:
    from skanomaly_vit import TransformalyDetector as Detector
detector = Detector.load(model)
paths = sorted(map(str, Path(folder).iterdir()))
detector.score_samples(paths[:8])
start = time.perf_counter()
detector.score_samples(paths)
print(len(paths) / (time.perf_counter() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=positive, default=1000)
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=positive, default=200, help="different cells to send")
    parser.add_argument("--kills", type=positive, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print_circumstances(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, cells = prepare(folder, args.images, args.seed)
        print("\n| model | clients | answers | other | p50, ms | p99, ms | rate, of bare |")
        print("|---|---|---|---|---|---|---|")
        for model in models:
            for n_clients in args.clients:
                measure(model, cells, n_clients, args.requests)
        for model in models:
            print_rows(model, folder, len(cells), args.kills)


def prepare(folder: Path, n_images: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Models of both kinds, and a folder with cells that they do not know."""
    cells = load_elpv()
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(cells.defect_probability == 0))
    known, new = normal[:N_TRAIN], rng.permutation(len(cells.images))
    new = new[~np.isin(new, known)][:n_images]
    detector = TransformalyDetector(random_state=seed).fit(cells.images[known])
    models = [folder / "cells.skanomaly", folder / "cells.onnx"]
    detector.save(models[0])
    export_onnx(detector, models[1])
    inbox = folder / "inbox"
    inbox.mkdir()
    for index in new:
        shutil.copy(cells.images[index], inbox)
    return models, sorted(inbox.iterdir())


@contextmanager
def served(model: Path, n_places: int) -> Iterator[str]:
    process = subprocess.Popen(
        [*COMMAND, "serve", str(model), "--port", "0", "--queue", str(n_places)],
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        found = None
        for line in process.stderr or ():
            if found := re.search(r"http://\S+", line):
                break
        if found is None:
            raise SystemExit("the service did not start")
        try:
            yield found.group()
        finally:
            process.terminate()


def measure(model: Path, cells: list[Path], n_clients: int, n_requests: int) -> None:
    bodies = [path.read_bytes() for path in cells]
    bare = [rate_of_scores(model, cells)]
    with served(model, max(64, n_clients)) as address:
        seconds, statuses, took = load(address, bodies, n_clients, n_requests)
    bare.append(rate_of_scores(model, cells))
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    rate = n_requests / took / np.mean(bare)
    others = n_requests - statuses[200]
    print(
        f"| {model.suffix} | {n_clients} | {statuses[200]} | {others} | {p50:.0f} | {p99:.0f} "
        f"| {rate:.2f} |",
        flush=True,
    )


def rate_of_scores(model: Path, cells: list[Path]) -> float:
    """Images a second of `score_samples`, in a process of its own, as the service is."""
    command = [sys.executable, "-c", SCORING, str(model), str(cells[0].parent)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load(
    address: str, bodies: list[bytes], n_clients: int, n_requests: int
) -> tuple[list[float], Counter[int], float]:
    """Seconds of each request, statuses, and seconds of them all."""
    todo = itertools.count()
    lock = threading.Lock()
    seconds: list[float] = []
    statuses: Counter[int] = Counter()

    def client(_: int) -> None:
        with httpx.Client(base_url=address, timeout=600) as connection:
            while True:
                with lock:
                    number = next(todo)
                if number >= n_requests:
                    return
                start = time.perf_counter()
                answer = connection.post(
                    "/score",
                    content=bodies[number % len(bodies)],
                    headers={"content-type": "image/png"},
                )
                with lock:
                    seconds.append(time.perf_counter() - start)
                    statuses[answer.status_code] += 1

    httpx.post(f"{address}/score", content=bodies[0], headers={"content-type": "image/png"})
    start = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(client, range(n_clients)))
    return seconds, statuses, time.perf_counter() - start


def print_rows(model: Path, folder: Path, n_files: int, n_kills: int) -> None:
    """Kill a watch several times, each after a share of the rows, and compare rows with files."""
    table = folder / f"{model.suffix[1:]}.csv"
    command = [*COMMAND, "watch", str(model), str(folder / "inbox"), "-o", str(table)]
    command += ["--settle", "0", "--batch-size", "2"]
    for turn in range(n_kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while count_lines(table) < 1 + n_files * (turn + 1) / (n_kills + 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--once"], check=True, stderr=subprocess.DEVNULL)
    with open(table, newline="") as stream:
        paths = Counter(row["path"] for row in csv.DictReader(stream))
    lost = {path.name for path in (folder / "inbox").iterdir()} - set(paths)
    twice = [path for path, count in paths.items() if count > 1]
    print(
        f"\nwatch {model.suffix}: killed {n_kills} times; {n_files} files, {len(lost)} lost, "
        f"{len(twice)} twice",
        flush=True,
    )


def count_lines(table: Path) -> int:
    return table.read_bytes().count(b"\n") if table.exists() else 0


if __name__ == "__main__":
    main()
