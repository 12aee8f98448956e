"""Scoring rates by number of worker processes and of threads in each, in one run.

Workers get equal shares of the images; each loads the detector once, before the clock starts. More
threads than cores are slower, not faster: they wait for each other. joblib gives each of `n_jobs`
workers its share of the cores unless told otherwise, as here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import joblib
import numpy as np
from harness import positive, print_circumstances, score_with

from skanomaly_vit import TransformalyDetector


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=192, help="default: 192")
    parser.add_argument("--repeats", type=positive, default=5, help="default: 5")
    args = parser.parse_args()
    print_circumstances(seed=0)
    cores = joblib.cpu_count()
    images = np.random.default_rng(0).integers(0, 256, (args.images, 112, 112, 3), dtype=np.uint8)
    print(f"{args.images} images of 112 px\n\n{'workers x threads':<18} {'images_per_s':>12}")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "detector.joblib")
        joblib.dump(TransformalyDetector(random_state=0).fit(images[:16]), path)
        for workers, threads in dict.fromkeys([(1, cores), (cores, 1), (cores, cores)]):
            seconds = measure(path, images, workers, threads, args.repeats)
            rate = args.images / statistics.median(seconds)
            print(f"{workers} x {threads:<14} {rate:12.1f}", flush=True)


def measure(path: str, images: np.ndarray, workers: int, threads: int, repeats: int) -> list[float]:
    parts = np.array_split(images, workers)
    seconds = []
    # At least 2, or joblib would run the job in this process, with its threads.
    with (
        joblib.parallel_config("loky", inner_max_num_threads=threads),
        joblib.Parallel(n_jobs=max(2, workers)) as parallel,
    ):
        for _ in range(1 + repeats):
            start = perf_counter()
            parallel(joblib.delayed(score_with)(path, part) for part in parts)
            seconds.append(perf_counter() - start)
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    return seconds[1:]


if __name__ == "__main__":
    main()
