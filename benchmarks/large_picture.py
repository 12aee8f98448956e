"""Measure time and peak memory of scoring large pictures in tiles.

The detector learns from pictures of 800 x 800 pixels of random squares, in tiles of 400 pixels, and
scores one picture of each size of `--sides`, from a PNG file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import append_csv, not_negative, peak_memory, positive, print_circumstances
from PIL import Image

from skanomaly_vit import TransformalyDetector

_SQUARE, _LEARNED = 8, 800


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    rng = np.random.default_rng(args.seed)
    detector = TransformalyDetector(tiles=args.tile, random_state=args.seed, contamination=0.2)
    detector.fit([picture(_LEARNED, rng) for _ in range(30)])
    print(f"{'megapixels':>10} {'seconds':>8} {'peak GB':>8}")
    print(f"{'fit':>10} {'':>8} {peak_memory() / 1000:8.2f}")
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sides:
            path = Path(folder) / f"{side}.png"
            Image.fromarray(picture(side, rng)).save(path, compress_level=1)
            started = time.perf_counter()
            list(detector.iter_scores([str(path)]))
            seconds, peak = time.perf_counter() - started, peak_memory() / 1000
            print(f"{side**2 / 1e6:10.0f} {seconds:8.1f} {peak:8.2f}", flush=True)
            figures = {"seconds": round(seconds, 2), "peak_gb": round(peak, 3)}
            append_csv(args.output, {"megapixels": side**2 / 1e6, "tile": args.tile} | figures)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sides", nargs="+", type=positive, default=[2000, 10000], metavar="PIXELS")
    add("--tile", type=positive, default=400, metavar="PIXELS")
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def picture(side: int, rng: np.random.Generator) -> np.ndarray:
    """Grey squares of 8 pixels, (side, side, 3) uint8."""
    squares = rng.integers(90, 160, (side // _SQUARE,) * 2, dtype=np.uint8)
    plane = squares.repeat(_SQUARE, axis=0).repeat(_SQUARE, axis=1)
    return np.repeat(plane[..., np.newaxis], 3, axis=2)


if __name__ == "__main__":
    main()
