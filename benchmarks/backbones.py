"""Compare backbones and image sizes: speed and memory here, and what they find on magnetic tiles.

Prints the table of docs/how_to/choose_a_backbone.md, and draws its picture. Passes of all networks
alternate, and medians count. The AUROC of the default recipe comes from results/magnetic-tiles.csv,
which magnetic_tiles.py wrote; networks need no weights here. ``--auroc`` writes it for the command
`skanomaly backbones`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from harness import positive, print_circumstances

from skanomaly_vit._backbone.loading import describe_published
from skanomaly_vit._backbone.speed import Speed, measure_speed

#: Name, image size, and the size as the CSV file has it.
NETWORKS = [
    ("embedded", 112, "own"),
    ("embedded", 168, "168"),
    ("embedded", 224, "224"),
    ("vit_base_patch16_clip_quickgelu_224", 224, "own"),
]
#: Tag of the weights that were measured, where a name has several.
WEIGHTS = {"vit_base_patch16_clip_quickgelu_224": ".openai"}
TILES = Path(__file__).parent / "results" / "magnetic-tiles.csv"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive, default=3, help="default: 3")
    parser.add_argument(
        "--auroc", type=Path, metavar="FILE",
        help="only write the AUROC that `skanomaly backbones` shows, as csv",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, default=None, metavar="FILE", help="SVG or PNG")
    args = parser.parse_args()
    if args.auroc is not None:
        write_auroc(args.auroc)
        return
    print_circumstances(seed=0)
    rows = table(args.repeats)
    print(rows.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if args.picture is not None:
        draw(rows, args.picture)


def table(repeats: int) -> pd.DataFrame:
    found: list[list[Speed]] = [[] for _ in NETWORKS]
    for _ in range(repeats):
        for speeds, (name, size, _) in zip(found, NETWORKS, strict=True):
            speeds.append(measure_speed(name, size, "cpu"))
    auroc, rows = auroc_on_tiles(), []
    for speeds, (name, size, known_as) in zip(found, NETWORKS, strict=True):
        network = describe_published(name, size)
        rows.append(
            {
                "backbone": name,
                "image_size": size,
                "parameters": network.n_parameters,
                "patches": network.n_patches,
                "rate": statistics.median(speed.rate for speed in speeds),
                "GiB": statistics.median((speed.peak_bytes or 0) / 2**30 for speed in speeds),
                "tiles": auroc[name, known_as],
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(of_first=frame["rate"] / frame["rate"][0])


def auroc_on_tiles() -> pd.Series:
    """Mean over the kinds of defects, in percent, of seed 0, which all sizes were measured with."""
    rows = pd.read_csv(TILES, dtype={"image_size": str})
    rows = rows[(rows["method"] == "transformaly") & (rows["seed"] == 0)]
    return 100 * rows.groupby(["backbone", "image_size"])["auroc"].mean()


def write_auroc(path: Path) -> None:
    auroc = auroc_on_tiles()
    rows = [
        (name + WEIGHTS.get(name, ""), size, round(auroc[name, known_as], 1))
        for name, size, known_as in NETWORKS
    ]
    frame = pd.DataFrame(rows, columns=["name", "image_size", "auroc"])
    frame.to_csv(path, index=False, lineterminator="\n")


def draw(rows: pd.DataFrame, path: Path) -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "backbones", "font.size": 10})
    figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for row in rows.itertuples():
        is_embedded = row.backbone == "embedded"
        axes.scatter(row.of_first, row.tiles, s=70, color="#0b5cad" if is_embedded else "#d1600f")
        name = "embedded ViT-S" if is_embedded else "CLIP ViT-B/16"
        axes.annotate(f"{name}, {row.image_size} px", (row.of_first, row.tiles), xytext=(0, 9),
                      textcoords="offset points", ha="center")  # fmt: skip
    axes.set_xscale("log")
    ticks = [0.05, 0.1, 0.2, 0.5, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlabel="images a second, relative to the embedded network at 112 px",
        ylabel="AUROC in percent, magnetic tiles",
        xlim=(0.03, 2),
        ylim=(86, 90),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
