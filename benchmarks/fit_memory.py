"""Where the memory of a default `fit` goes, stage by stage, and how long the fit takes.

Each setting runs in a process of its own. After each stage, and at each line of the log of `fit`,
the script prints the memory that is resident now and at most so far: all of it, and the part that
no file backs (`anonymous`, which the system cannot give back). A thread looks every 5 ms. `tokens`
is `activation_cache` of the detector: where it is 0, images pass through the backbone twice. The
last row has the processor seconds of the whole fit, which other work on the machine distorts less
than a clock. It needs Linux.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")

COLUMNS = ("stage", "now_mb", "anonymous_mb", "peak_mb", "peak_anonymous_mb", "seconds")


def main() -> None:
    options = parse()
    if options.worker:
        work(Path(options.worker), options)
        return
    from harness import append_csv, print_circumstances

    print_circumstances(options.seed)
    if options.csv:
        options.csv.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or make_files(Path(folder), options.images, options.seed)
        for tokens in options.tokens:
            runs = [measure(data, tokens, options) for _ in range(options.repeats)]
            seconds = statistics.median(float(rows[-1]["seconds"]) for rows in runs)
            for row in runs[0]:
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                if options.csv:
                    append_csv(options.csv, {"images": options.images, "tokens": tokens, **row})
            print(f"tokens {tokens}: median of {options.repeats} fits {seconds:.1f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of images; default: synthetic JPEG files")
    add("--images", type=int, default=500, help="default: 500")
    add("--tokens", type=int, nargs="+", default=[2**30, 0], metavar="BYTES",
        help="activation_cache; default: that of the detector, and 0")  # fmt: skip
    add("--repeats", type=int, default=1, help="default: 1")
    add("--held", action="store_true", help="keep all tokens in memory, none in a file")
    add("--seed", type=int, default=0, help="default: 0")
    add("--csv", type=Path, help="write the rows to this file")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_files(folder: Path, n_files: int, seed: int) -> Path:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for i in range(n_files):
        noise = rng.integers(0, 60, (64, 64, 3)) + rng.integers(40, 160, 3)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i:07}.jpg", quality=90)
    return folder


def measure(data: Path, tokens: int, options: argparse.Namespace) -> list[dict[str, str]]:
    """Rows of one fit, in a new process."""
    command = [sys.executable, __file__, "--worker", data, "--tokens", tokens]
    command += ["--images", options.images, "--seed", options.seed]
    command += ["--held"] if options.held else []
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return list(csv.DictReader(done.stdout.splitlines(), COLUMNS))


class Watch(logging.Handler):
    """Memory of this process, resident and anonymous, in MB (10^6 bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self._peak = [0.0, 0.0]
        self._started = time.perf_counter()
        threading.Thread(target=self._look, daemon=True).start()

    def tell(self, stage: str) -> None:
        """Print a row."""
        self._update()
        figures = [f"{value:.0f}" for value in (*self._now(), *self._peak)]
        seconds = f"{time.perf_counter() - self._started:.1f}"
        csv.writer(sys.stdout).writerow([stage, *figures, seconds])
        self._started = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a row at a line of the log."""
        self.tell(record.getMessage().partition(".")[0])

    def _look(self) -> None:
        while True:
            self._update()
            time.sleep(0.005)

    def _update(self) -> None:
        self._peak = [max(pair) for pair in zip(self._peak, self._now(), strict=True)]

    @staticmethod
    def _now() -> list[float]:
        with open("/proc/self/statm") as stream:
            _, resident, shared, *_ = map(int, stream.read().split())
        return [each * _PAGE / 1e6 for each in (resident, resident - shared)]


def work(data: Path, options: argparse.Namespace) -> None:
    """Import, fit, and print a row after each."""
    watch = Watch()
    watch.tell("Python")
    from skanomaly_vit import TransformalyDetector  # slow: measured

    paths = sorted(map(str, data.iterdir()))[: options.images]
    watch.tell("imports")
    detector = TransformalyDetector(
        activation_cache=options.tokens[0], random_state=options.seed, verbose=1
    )
    logger = logging.getLogger("skanomaly_vit")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    logger.propagate = False
    if options.held:
        from skanomaly_vit._backbone import activations

        activations.IN_MEMORY = 2**40
    started = time.process_time()
    detector.fit(paths)
    watch.tell("the densities")
    print(f"the fit,,,,,{time.process_time() - started:.1f}", flush=True)


if __name__ == "__main__":
    main()
