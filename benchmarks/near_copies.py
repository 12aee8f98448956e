"""Measure how often `fit` warns of near copies: of independent images, and of frames of videos.

Each split draws images anew and holds out a fifth of them, as `fit` does. *images* are those of the
data set. *frames* are made from them: each video has the given number of frames of one image,
moved, brightened and with noise. `--strength 1` moves a frame by up to 3 % of its side, changes its
brightness by up to 5 %, and adds noise with a standard deviation of 3 grey values; 2 doubles all
three. *by video* holds out whole videos, as `groups` does, and compares all frames. The columns are
the mean share of held-out images that are taken for near copies, and the share of splits that warn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from PIL import Image

from skanomaly_vit import ViTFeatures, datasets
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.detector._near_copies import are_too_many, find_near_copies

KEY = ("dataset", "case", "n_images")

#: Held-out and learned features of a split, by its generator.
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    paths = load(args)
    features = embed(paths, args)
    for n in args.images:
        if n <= len(features):
            measure(args, "images", n, lambda rng, n=n: split(rng, rng.permutation(features)[:n]))
    for n_frames in args.frames:
        film(args, paths, n_frames)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="elpv", metavar="PATH",
        help="elpv: solar cells of one type; or train/<class>/")  # fmt: skip
    add("--normal-class", nargs="+", default=["mono"], help="classes, or type of module")
    add("--limit", type=positive, default=600, help="images of the data set; default: 600")
    add("--images", type=positive, nargs="+", default=[40, 150, 300, 600])
    add("--frames", type=positive, nargs="+", default=[2, 4, 7, 10])
    add("--videos", type=positive, default=40, help="videos; default: 40")
    add("--strength", type=float, default=1.0)
    add("--splits", type=positive, default=100)
    add("--seed", type=not_negative, default=0)
    add("--memory", type=Path, default=None)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(args: argparse.Namespace) -> np.ndarray:
    """Paths of normal images, evenly from the classes."""
    rng = np.random.default_rng(args.seed)
    if args.data == "elpv":
        cells = datasets.load_elpv()
        known, classes = np.where(cells.y == 1, cells.module_type, ""), cells.images
    else:
        data = datasets.load_image_folder(args.data)
        known, classes = data.labels, data.images
    n_each = args.limit // len(args.normal_class)
    chosen = [rng.permutation(classes[known == name])[:n_each] for name in args.normal_class]
    return np.concatenate(chosen)


def embed(images: np.ndarray | list[np.ndarray], args: argparse.Namespace) -> np.ndarray:
    features: np.ndarray = ViTFeatures(memory=args.memory).fit_transform(images)
    return features.astype(np.float64)


def split(rng: np.random.Generator, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_held_out = int(np.ceil(0.2 * len(rows)))
    return rows[:n_held_out], rows[n_held_out:]


def film(args: argparse.Namespace, paths: np.ndarray, n_frames: int) -> None:
    rng = np.random.default_rng([args.seed, n_frames])
    stills = [np.asarray(Image.open(path).convert("RGB")) for path in paths[: args.videos]]
    frames = embed(
        [take(still, args.strength, rng) for still in stills for _ in "f" * n_frames], args
    )
    videos = frames.reshape(len(stills), n_frames, -1)
    case = f"{n_frames} frames, strength {args.strength:g}"
    measure(args, case, len(frames), lambda rng: split(rng, rng.permutation(frames)))
    n_features = frames.shape[1]

    def by_video(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        held_out, learned = split(rng, rng.permutation(videos))
        return held_out.reshape(-1, n_features), learned.reshape(-1, n_features)

    measure(args, f"{case}, by video", len(frames), by_video)


def take(still: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A frame of a video of a still (h, w, 3)."""
    height, width = still.shape[:2]
    reach = max(1, round(0.03 * strength * min(height, width)))
    padded = np.pad(still, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * reach + 1, 2)
    moved = padded[top : top + height, left : left + width]
    noise = rng.normal(0, 3 * strength, (height, width, 1))
    lit = moved * (1 + 0.05 * strength * rng.uniform(-1, 1)) + noise
    return lit.clip(0, 255).astype(np.uint8)


def measure(args: argparse.Namespace, case: str, n: int, draw: Draw) -> None:
    shares, warned = [], []
    for number in range(args.splits):
        held_out, learned = draw(np.random.default_rng([args.seed, number]))
        found = find_near_copies(held_out, Rows.of(learned))
        shares.append(found.mean())
        warned.append(are_too_many(found))
    print(f"{case:<34} n={n:<5} near copies {100 * np.mean(shares):5.1f} %, "
          f"warns in {100 * np.mean(warned):5.1f} % of splits", flush=True)  # fmt: skip
    name = args.data if args.data == "elpv" else Path(args.data).name
    figures = {"near_copies": round(float(np.mean(shares)), 4),
               "warns": round(float(np.mean(warned)), 4), "splits": args.splits}  # fmt: skip
    where = {"dataset": f"{name}-{'+'.join(args.normal_class)}", "case": case, "n_images": n}
    merge_csv(args.output, where | figures, KEY)


if __name__ == "__main__":
    main()
