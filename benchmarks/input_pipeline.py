"""Input pipeline: time between a JPEG file and a score, by image size and decoder.

For each size, with synthetic photographs as JPEG files:

- *decode*: images/s of decoding alone: Pillow; Pillow in a thread, and in a process, a core;
  torchvision's ``decode_jpeg``; Pillow's draft mode, which decodes at an eighth to all of the
  size. With the largest and the mean difference from Pillow in gray levels: of decoded pixels, or,
  where sizes differ, of the network's input;
- *prepare*: images/s of decoding, resizing and normalising in one thread;
- *network*: images/s of the backbone and students on prepared batches;
- *score*: images/s of `score_samples` from files, with one thread, with one a core, and with
  batches read ahead in a thread (which the package does for other devices than CPUs only);
- *device*: the same for a stand-in that sleeps 10 ms per image and leaves the cores alone, as a GPU
  does: the gain of reading ahead where the network runs elsewhere.

The sides of a size take turns; medians count. ``cpu_ms`` is the processor time per image, over all
threads of this process. Unlike rates, it holds on a machine that other programs keep busy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, process_time, sleep
from unittest import mock

import joblib
import numpy as np
import torch
from harness import Columns, append_csv, positive, print_circumstances, print_row, print_titles
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._images.decoding import decode_image
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.prefetching import Reader
from skanomaly_vit._images.preprocessing import Preprocessing, prepare

COLUMNS: Columns = {
    "size": ("<10", ""),
    "what": ("<8", ""),
    "side": ("<22", ""),
    "images_per_s": (">12", ".1f"),
    "of_first": (">8", ".2f"),
    "cpu_ms": (">8", ".2f"),
    "largest_difference": (">18", ".2f"),
    "mean_difference": (">15", ".3f"),
}
SLEEP = 0.01  # seconds per image, of the stand-in for a device


def main() -> None:
    args = make_parser().parse_args()
    print_circumstances(seed=0)
    print_titles(COLUMNS)
    few = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    detector = TransformalyDetector(random_state=0).fit(few)
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        n_images = min(args.images, max(4, args.megapixels * 10**6 // (width * height)))
        with tempfile.TemporaryDirectory() as folder:
            paths = save_photographs(n_images, (height, width), Path(folder))
            for what, sides in make_parts(detector, paths).items():
                report(size, what, sides, paths, args, detector)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["4000x3000", "1600x1200", "640x480", "32x32"]
    parser.add_argument("--sizes", nargs="+", default=sizes, help=f"default: {' '.join(sizes)}")
    parser.add_argument("--images", type=positive, default=32, help="at most; default: 32")
    parser.add_argument("--megapixels", type=positive, default=100, help="of a size; default: 100")
    parser.add_argument("--repeats", type=positive, default=3, help="default: 3")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    return parser


def save_photographs(n_images: int, size: tuple[int, int], folder: Path) -> list[str]:
    """Save smooth shapes with grain, which compress about as photographs do."""
    rng, paths = np.random.default_rng(0), []
    height, width = size
    grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    for index in range(n_images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{index}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


Run = Callable[[list[str]], object]


def make_parts(detector: TransformalyDetector, paths: list[str]) -> dict[str, dict[str, Run]]:
    teacher = detector.features_._held_teacher()
    preprocessing = teacher.preprocessing
    source = open_images(paths)
    batch = source.load(range(len(paths)), preprocessing)
    students = detector.distillation_._students_on(teacher.device)
    side = min(preprocessing.image_size)
    cores = joblib.cpu_count()

    def network(paths: list[str]) -> None:
        run_network(teacher, students, batch)

    def score(n_jobs: int, n_ahead: int) -> Run:
        def run(paths: list[str]) -> None:
            with mock.patch.object(_passes, "batches_ahead", return_value=n_ahead):
                detector.set_params(n_jobs=n_jobs, batch_size=8).score_samples(paths)

        return run

    def device(n_jobs: int, n_ahead: int) -> Run:
        return lambda paths: feed_stand_in(paths, preprocessing, n_jobs, n_ahead)

    return {
        "decode": {
            "Pillow": lambda paths: consume(map(decode_image, paths)),
            f"Pillow, {cores} threads": decode_in_threads,
            f"Pillow, {cores} processes": decode_in_processes,
            "torchvision": lambda paths: consume(map(decode_by_torchvision, paths)),
            "Pillow, draft": lambda paths: consume(decode_draft(path, side) for path in paths),
        },
        "prepare": {
            "one thread": lambda paths: open_images(paths).load(range(len(paths)), preprocessing)
        },
        "network": {"": network},
        "score": {
            "one thread": score(1, 0),
            f"{cores} threads": score(cores, 0),
            "ahead, one thread": score(1, 2),
        },
        "device": {
            "one thread": device(1, 0),
            f"{cores} threads": device(cores, 0),
            "ahead, one thread": device(1, 16),
            f"ahead, {cores} threads": device(cores, 16),
        },
    }


def consume(images: Iterable[object]) -> None:
    for _ in images:
        pass


def decode_in_threads(paths: list[str]) -> None:
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        consume(pool.map(decode_image, paths))


def shape_of(path: str) -> tuple[int, ...]:
    """Shape of a decoded image: a small result, so that decoding counts, not sending."""
    return decode_image(path).shape


def decode_in_processes(paths: list[str]) -> None:
    joblib.Parallel(n_jobs=joblib.cpu_count())(joblib.delayed(shape_of)(path) for path in paths)


def decode_by_torchvision(path: str) -> np.ndarray:
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


def decode_draft(path: str, side: int) -> np.ndarray:
    """Decode at the smallest size of JPEG that is no smaller than the network's input."""
    with Image.open(path) as image:
        image.draft("RGB", (side, side))
        return np.asarray(image)


@torch.inference_mode()
def run_network(teacher: object, students: dict[int, torch.nn.Module], batch: torch.Tensor) -> None:
    def visit(call: object) -> None:
        (call.replay(students[call.index]) - call.output).square().mean()

    for part in batch.split(8):
        teacher(part, blocks=students, visit=visit)


def feed_stand_in(
    paths: list[str], preprocessing: Preprocessing, n_jobs: int, n_ahead: int
) -> None:
    reader = Reader(open_images(paths), preprocessing, n_jobs=n_jobs, n_ahead=n_ahead)
    for start in range(0, len(paths), 8):
        stop = min(start + 8, len(paths))
        reader.expect(range(stop, min(stop + n_ahead, len(paths))))
        reader.load(range(start, stop))
        sleep(SLEEP * (stop - start))
    reader.close()


def report(
    size: str,
    what: str,
    sides: dict[str, Run],
    paths: list[str],
    args: argparse.Namespace,
    detector: TransformalyDetector,
) -> None:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    processor: dict[str, list[float]] = {side: [] for side in sides}
    for run in sides.values():  # once to warm up
        run(paths)
    for _ in range(args.repeats):
        for side, run in sides.items():
            start, started = perf_counter(), process_time()
            run(paths)
            seconds[side].append(perf_counter() - start)
            processor[side].append(process_time() - started)
    first = next(iter(seconds.values()))
    for side, times in seconds.items():
        largest, mean = differences(side, paths, detector) if what == "decode" else (0.0, 0.0)
        row = {
            "size": size,
            "what": what,
            "side": side,
            "images_per_s": len(paths) / statistics.median(times),
            "of_first": statistics.median(a / b for a, b in zip(first, times, strict=True)),
            "cpu_ms": 1000 * statistics.median(processor[side]) / len(paths),
            "largest_difference": largest,
            "mean_difference": mean,
        }
        print_row(COLUMNS, row)
        if args.csv is not None:
            append_csv(
                args.csv, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            )


def differences(side: str, paths: list[str], detector: TransformalyDetector) -> tuple[float, float]:
    """Largest and mean difference from Pillow, in gray levels."""
    own = detector.features_._held_teacher().preprocessing
    levels = Preprocessing(own.image_size, (0.0,) * 3, (1 / 255,) * 3, own.interpolation)
    found = []
    for path in paths[:4]:
        expected = decode_image(path)
        if side == "torchvision":
            found.append(np.abs(decode_by_torchvision(path).astype(float) - expected))
        elif side == "Pillow, draft":
            draft = decode_draft(path, min(own.image_size))
            found.append(np.abs((prepare(draft, levels) - prepare(expected, levels)).numpy()))
        else:
            return 0.0, 0.0
    return max(float(d.max()) for d in found), statistics.mean(float(d.mean()) for d in found)


if __name__ == "__main__":
    main()
