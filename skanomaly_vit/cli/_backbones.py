"""The command ``skanomaly backbones``: which networks there are, and their weights as a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import click

from skanomaly_vit.cli._options import (
    EXIT_CODES,
    MachineMismatch,
    check_output,
    device_option,
    epilog,
    readers_option,
)
from skanomaly_vit.cli._terminal import progress_bar, tell

#: Networks to begin with, small ones first. Any other of timm's with blocks serves as well.
SUGGESTED = (
    "embedded",
    "vit_small_patch16_224.dino",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "vit_large_patch14_reg4_dinov2.lvd142m",
)

_MEASURE_NOTE = (
    "--measure times passes of random images through networks with random weights, which need no "
    "download; peak memory is that of a process of its own. docs/how_to/choose_a_backbone.md "
    "says what they find."
)


@click.group(
    "backbones",
    invoke_without_command=True,
    short_help="List networks, or fetch the weights of one.",
    epilog=epilog(
        "skanomaly backbones",
        "skanomaly backbones list --measure embedded vit_base_patch16_dinov3.lvd1689m",
        "skanomaly backbones fetch vit_base_patch16_clip_quickgelu_224.openai -o clip.safetensors",
        note=EXIT_CODES,
    ),
)
@click.pass_context
def backbones(ctx: click.Context) -> None:
    """List networks that `fit --backbone` takes, or fetch the weights of one into a file."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(_list)


@backbones.command(
    "list",
    short_help="Size, work and licence of networks.",
    epilog=epilog(
        "skanomaly backbones list embedded --image-size 224 --measure", note=_MEASURE_NOTE
    ),
)
@click.argument("names", nargs=-1)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the square that images are resized to.  [default: the network's]",
)
@click.option("--measure", is_flag=True, help="Images a second and peak memory on this machine.")
@readers_option
@device_option
def _list(
    names: tuple[str, ...] = (),
    image_size: int | None = None,
    measure: bool = False,
    kind: str = "text",
    device: str = "auto",
) -> None:
    """Describe networks by NAME, as timm spells it; some to begin with, if there is none.

    *work* is that of an image, in units of the embedded network at its own size. *AUROC* is what we
    have measured on magnetic tiles, at that many pixels.
    """
    from skanomaly_vit._backbone.loading import EMBEDDED, describe_published

    unit = _work(describe_published(EMBEDDED))
    try:
        found = [describe_published(name, image_size) for name in names or SUGGESTED]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    measured = _measured()
    rows: list[dict[str, Any]] = [
        {
            "name": each.name,
            "parameters": each.n_parameters,
            "image_size": list(each.image_size),
            "n_patches": each.n_patches,
            "n_blocks": each.n_blocks,
            "work": round(_work(each) / unit, 1),
            "license": each.license,
            "auroc": measured.get((each.name, each.image_size)),
        }
        for each in found
    ]
    if measure:
        _measure(rows, image_size, None if device == "auto" else device)
    click.echo(json.dumps(rows, indent=2) if kind == "json" else "\n".join(_lines(rows)))


def _measured() -> dict[tuple[str, tuple[int, int]], float]:
    """Network and image size -> mean AUROC in percent on magnetic tiles.

    ``benchmarks/backbones.py --auroc skanomaly_vit/cli/measured_auroc.csv`` writes the file.
    """
    text = resources.files("skanomaly_vit.cli").joinpath("measured_auroc.csv").read_text("utf-8")
    return {
        (row["name"], (int(row["image_size"]),) * 2): float(row["auroc"])
        for row in csv.DictReader(text.splitlines())
    }


def _work(network: Any) -> float:
    """Products of a pass in the layers, up to a factor."""
    return float(network.n_parameters * (network.n_patches + 1))


def _measure(rows: list[dict[str, Any]], image_size: int | None, device: str | None) -> None:
    """Add images a second and peak memory to rows, each measured in a process of its own."""
    from skanomaly_vit._backbone.speed import measure_speed

    with progress_bar("measuring", len(rows)) as bar:
        for row in rows:
            try:
                speed = measure_speed(row["name"], image_size, device)
            except (RuntimeError, ValueError) as error:
                raise MachineMismatch(f"{row['name']}: {error}") from error
            row |= {"images_per_second": round(speed.rate, 2), "peak_bytes": speed.peak_bytes}
            bar.update()


def _lines(rows: list[dict[str, Any]]) -> Iterable[str]:
    columns = {
        "name": [row["name"] for row in rows],
        "parameters": [f"{row['parameters'] / 1e6:.0f} M" for row in rows],
        "pixels": ["x".join(map(str, row["image_size"])) for row in rows],
        "patches": [str(row["n_patches"]) for row in rows],
        "work": [f"{row['work']:g}" for row in rows],
    }
    if "images_per_second" in rows[0]:
        columns["images/s"] = [f"{row['images_per_second']:.3g}" for row in rows]
        columns["memory"] = [_gibibytes(row["peak_bytes"]) for row in rows]
    columns["AUROC"] = [
        "not measured" if row["auroc"] is None else f"{row['auroc']:.1f}" for row in rows
    ]
    columns["licence"] = [row["license"] for row in rows]
    widths = {title: max(len(title), *map(len, cells)) for title, cells in columns.items()}
    texts = {"name", "licence"}
    for line in (list(columns), *zip(*columns.values(), strict=True)):
        cells = [
            cell.ljust(width) if title in texts else cell.rjust(width)
            for cell, (title, width) in zip(line, widths.items(), strict=True)
        ]
        yield "  ".join(cells).rstrip()
    yield ""
    yield "AUROC: in percent on magnetic tiles, a mean of five kinds of defects, with the default"
    yield "recipe at these pixels. `skanomaly evaluate` measures a network on your own images."


def _gibibytes(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else f"{n_bytes / 2**30:.1f} GiB"


@backbones.command(
    "fetch",
    short_help="Write the weights of a network to a file.",
    epilog=epilog(
        "skanomaly backbones fetch vit_small_patch14_reg4_dinov2.lvd142m -o dinov2.safetensors",
        "skanomaly fit parts/good -o parts.skanomaly --pretrained dinov2.safetensors "
        "--backbone vit_small_patch14_reg4_dinov2",
        note="Exit code 3: the weights are unavailable; the message says what to do instead.",
    ),
)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    callback=check_output,
    help="A .safetensors file.",
)
def _fetch(name: str, output: str) -> None:
    """Download the weights of the network NAME, for a machine without a connection.

    There, `skanomaly fit --backbone NAME --pretrained FILE` reads the file.
    """
    if not output.endswith(".safetensors"):
        raise click.UsageError(f"{output!r} has to end in .safetensors.")
    from safetensors.torch import save

    from skanomaly_vit._backbone.loading import fetch_published
    from skanomaly_vit._utils.files import check_target, write_atomically
    from skanomaly_vit.exceptions import WeightsUnavailableError

    try:
        weights = fetch_published(name)
    except WeightsUnavailableError as error:
        raise MachineMismatch(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    content = save({key: value.contiguous() for key, value in weights.items()})
    write_atomically(content, check_target(output, "weights.safetensors"))
    tell(
        f"Wrote {len(content) / 2**20:.0f} MiB: {output}. Fit with --backbone {name} "
        f"--pretrained {output}"
    )
