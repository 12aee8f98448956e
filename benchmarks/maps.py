"""Measure anomaly maps against masks of defects.

On solar cells, `paste_defects` pastes defects on functional cells that no fit has seen. With
`--mvtec PATH` or `--tiles FOLDER`, the script uses the real defects and masks of a category of
MVTec AD, or of magnetic tiles in the layout of magnetic_tiles.py. It compares the three maps of the
detector with a random map, with the nearest neighbours of patches, and with plain reconstruction:
the error of a PCA of patches, of their pixels or of their tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import merge_csv, not_negative, positive, print_circumstances
from magnetic_tiles import load_tiles, split_good
from patch_neighbors import PatchNeighbors
from sklearn.decomposition import PCA
from sklearn.utils import Bunch

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit._backbone.anomaly_maps import enlarge
from skanomaly_vit._backbone.patches import layout_of
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.datasets import paste_defects, read_mask
from skanomaly_vit.evaluation import per_region_overlap, pixel_auroc

KEY = ("dataset", "image_size", "n_blocks", "method", "kind", "seed")
MAPS = ["chance", "PCA of pixels", "PCA of tokens", "patch neighbors", "discrepancy", "features",
        "both"]  # fmt: skip


def main() -> None:
    args = parse_args()
    print_circumstances(args.seeds[0])
    print(f"{'data':<12} {'size':>4} {'map':<22} {'defects':<8} {'pixel AUROC':>11} {'PRO':>6}")
    for seed in args.seeds:
        for data in load(args, seed):
            for size in args.image_sizes:
                measure(args, data, size, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mvtec", default=None, metavar="PATH", help="a category of MVTec AD; else solar cells")
    add("--tiles", type=Path, default=None, metavar="FOLDER", help="magnetic tiles; else as above")
    add("--train", type=positive, default=200, help="normal images to fit on; default: 200")
    add(
        "--test",
        type=positive,
        default=60,
        help="cells to paste defects on, or tiles with a defect of each kind, at most; default: 60",
    )
    add("--image-sizes", nargs="+", type=positive, default=[112], metavar="PIXELS")
    add("--n-blocks", type=positive, default=10, help="that have students; default: 10")
    add("--maps", nargs="+", choices=MAPS, default=MAPS, metavar="NAME",
        help=f"of {', '.join(MAPS)}")  # fmt: skip
    add("--seeds", nargs="+", type=not_negative, default=[0])
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def load(args: argparse.Namespace, seed: int) -> list[Bunch]:
    """Data sets: name, normal images to fit on, test images, their masks and kinds of defects."""
    if args.mvtec:
        data = datasets.load_mvtec(args.mvtec)
        name = f"mvtec-{Path(args.mvtec).name}"
        return [Bunch(name=name, train=data.images, images=data.test_images,
                      masks=data.test_masks, kinds=data.test_labels)]  # fmt: skip
    if args.tiles:
        return [tiles(args, seed)]
    cells = datasets.load_elpv()
    return [pasted(args, cells, module, seed) for module in ("mono", "poly")]


def tiles(args: argparse.Namespace, seed: int) -> Bunch:
    data = load_tiles(args.tiles)
    rng = np.random.default_rng(seed)
    found = [
        (data.defects[kind][i], data.masks[kind][i], kind)
        for kind in data.defects
        for i in rng.permutation(len(data.defects[kind]))[: args.test]
    ]
    images, masks, kinds = zip(*found, strict=True)
    # The edges of the masks are soft.
    marked = [read_mask(mask, defect="bright") for mask in masks]
    return Bunch(name="magnetic-tiles", train=split_good(data, args.train, seed)[0],
                 images=list(images), masks=marked, kinds=kinds)  # fmt: skip


def pasted(args: argparse.Namespace, cells: Bunch, module: str, seed: int) -> Bunch:
    functional = np.flatnonzero((cells.module_type == module) & (cells.y == 1))
    chosen = np.random.default_rng(seed).permutation(functional)[: args.train + args.test]
    defective = paste_defects(cells.images[chosen[args.train :]], random_state=seed)
    return Bunch(name=f"elpv-{module}", train=cells.images[chosen[: args.train]], **defective)


def measure(args: argparse.Namespace, data: Bunch, size: int, seed: int) -> None:
    detector = TransformalyDetector(
        image_size=size, n_blocks=args.n_blocks, random_state=seed, n_jobs=2
    ).fit(data.train)
    makers: dict[str, Any] = {
        "chance": lambda: by_chance(detector, data, seed),
        "PCA of pixels": lambda: pca_map(data, lambda images: pixels(detector, images)),
        "PCA of tokens": lambda: pca_map(data, lambda images: tokens(detector, images)),
        "patch neighbors": lambda: neighbors_map(data, size, seed),
        "discrepancy": lambda: detector.anomaly_map(data.images, "discrepancy"),
        "features": lambda: detector.anomaly_map(data.images, "features"),
        "both": lambda: detector.anomaly_map(data.images, "both"),
    }
    for name in args.maps:
        maps = makers[name]()
        for kind in ["all", *sorted(set(data.kinds))]:
            report(args, data, size, seed, name, kind, maps)


def report(
    args: argparse.Namespace, data: Bunch, size: int, seed: int, name: str, kind: str, maps: Any
) -> None:
    those = [i for i, other in enumerate(data.kinds) if kind in ("all", other)]
    masks = [data.masks[i] for i in those]
    if all(mask is None for mask in masks):
        return  # images without a defect
    figures = {
        "pixel_auroc": pixel_auroc(masks, [maps[i] for i in those]),
        "per_region_overlap": per_region_overlap(masks, [maps[i] for i in those]),
    }
    print(f"{data.name:<12} {size:>4} {name:<22} {kind:<8} {figures['pixel_auroc']:11.3f} "
          f"{figures['per_region_overlap']:6.3f}", flush=True)  # fmt: skip
    case = {"dataset": data.name, "image_size": size, "n_blocks": args.n_blocks, "method": name,
            "kind": kind, "seed": seed}  # fmt: skip
    merge_csv(args.output, case | {k: round(v, 5) for k, v in figures.items()}, KEY)


def by_chance(detector: TransformalyDetector, data: Bunch, seed: int) -> Any:
    rows, columns = layout(detector)
    noise = np.random.default_rng(seed).normal(size=(len(data.images), rows, columns))
    return resized(data, noise)


def neighbors_map(data: Bunch, size: int, seed: int) -> Any:
    detector = PatchNeighbors(image_size=size, random_state=seed, n_jobs=2).fit(data.train)
    return detector.anomaly_map(data.images)


def pca_map(data: Bunch, patches_of: Any) -> Any:
    """Error map of a PCA that keeps 90 % of the variance of normal patches."""
    normal = patches_of(data.train)
    values = patches_of(data.images)  # [n, rows, columns, values per patch]
    pca = PCA(0.9, svd_solver="full").fit(normal.reshape(-1, normal.shape[-1])[::4])
    flat = values.reshape(-1, values.shape[-1])
    error = np.square(flat - pca.inverse_transform(pca.transform(flat))).mean(axis=1)
    return resized(data, error.reshape(values.shape[:3]))


def resized(data: Bunch, maps: np.ndarray) -> Any:
    source = open_images(data.images)
    return enlarge(maps.astype(np.float32), [source.size(i) for i in range(len(source))])


def layout(detector: TransformalyDetector) -> tuple[int, int]:
    found = layout_of(detector.features_._held_teacher())
    return found.rows, found.columns


def batches(detector: TransformalyDetector, images: Any) -> Any:
    preprocessing = detector.features_._held_teacher().preprocessing
    return open_images(images).batches(preprocessing, batch_size=32, n_jobs=2)


def pixels(detector: TransformalyDetector, images: Any) -> np.ndarray:
    """Gray values of the backbone's patches: (images, rows, columns, pixels)."""
    rows, columns = layout(detector)
    grey = torch.cat([batch.mean(dim=1) for batch in batches(detector, images)])
    patches = grey.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return patches.transpose(2, 3).flatten(3).numpy()


@torch.inference_mode()
def tokens(detector: TransformalyDetector, images: Any) -> np.ndarray:
    """Tokens after the middle block, as in the map of features."""
    teacher = detector.features_._held_teacher()
    found = layout_of(teacher)
    collected: list[torch.Tensor] = []
    for batch in batches(detector, images):
        teacher(batch, blocks=[found.block],
                visit=lambda call: collected.append(found.tokens_of(call)))  # fmt: skip
    return torch.cat(collected).unflatten(1, (found.rows, found.columns)).numpy()


if __name__ == "__main__":
    main()
