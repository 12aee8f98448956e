"""The command ``compare``: two models on the same images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from skanomaly_vit.cli._evaluating import describe_evaluation
from skanomaly_vit.cli._labelled import (
    ANOMALY,
    labelled_options,
    list_labelled,
)
from skanomaly_vit.cli._options import (
    HARMLESS,
    ModelPath,
    batch_size_option,
    device_option,
    epilog,
    jobs_option,
    max_pixels_option,
    readers_option,
)
from skanomaly_vit.cli._steps import finish, load_for_files, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable

_MODEL = ModelPath(exists=True, dir_okay=False)


@click.command(
    "compare",
    short_help="Compare two models on the same images.",
    epilog=epilog(
        "skanomaly compare parts.skanomaly parts-2.skanomaly --normal good --anomaly defect",
        note=HARMLESS,
    ),
)
@click.argument("old", type=_MODEL)
@click.argument("new", type=_MODEL)
@labelled_options
@click.option(
    "--list",
    "n_listed",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of images to list of those that one model flags and the other does not.",
)
@readers_option
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def compare_command(
    old: str,
    new: str,
    normal: tuple[str, ...],
    anomaly: tuple[str, ...],
    table: str | None,
    root: str | None,
    leave_out_known: bool,
    n_listed: int,
    kind: str,
    **options: Any,
) -> None:
    """Compare the models OLD and NEW on images that neither has seen.

    Both score the same images, and the tests pair them: DeLong's for the AUROC, McNemar's for what
    each flags at its own threshold. A p-value near 1 is no proof that the models are equally good.
    """
    unreadable = Unreadable()
    labelled = list_labelled(normal, anomaly, table, root, unreadable)
    before, after = (load_for_files(model, **options) for model in (old, new))
    for detector in (before, after):
        labelled = labelled.readable(detector, unreadable)
    from skanomaly_vit.evaluation import compare_fitted

    with speaking_of_options():
        found = compare_fitted(
            before,
            after,
            labelled.paths,
            labelled.labels,
            kinds=labelled.kinds,
            anomaly_label=ANOMALY,
            known_images="leave_out" if leave_out_known else "raise",
        )
    described = {
        "old": {"model": old, **describe_evaluation(before, found.old, labelled, 0)},
        "new": {"model": new, **describe_evaluation(after, found.new, labelled, 0)},
        "auroc": {**found.auroc, "interval": list(found.auroc.interval)},
        **{
            key: {
                "only_old": [labelled.paths[i] for i in found[key].only_old],
                "only_new": [labelled.paths[i] for i in found[key].only_new],
                "p_value": found[key].p_value,
            }
            for key in ("false_alarms", "found")
        },
    }
    click.echo(json.dumps(described, indent=2) if kind == "json" else _text(described, n_listed))
    finish(unreadable, f"{found.old.n_normal + found.old.n_anomalies} images compared")


def _text(described: dict[str, Any], n_listed: int) -> str:
    from skanomaly_vit._utils.provenance import printable

    return "\n".join(map(printable, _lines(described, n_listed)))


def _lines(of: dict[str, Any], n_listed: int) -> Iterator[str]:
    from skanomaly_vit._utils.certificates import percent

    old, new, auroc = of["old"], of["new"], of["auroc"]
    yield f"{old['n_normal']} normal images, {old['n_anomalies']} anomalies"
    if old["n_left_out"]:
        yield f"left out: {old['n_left_out']} that a model knows"
    yield f"old: {old['model']}"
    yield f"new: {new['model']}"
    yield ""
    yield f"{'':<22} {'old':<10} {'new':<10} difference"
    low, high = auroc["interval"]
    yield (
        f"{'AUROC':<22} {old['auroc']:<10.3f} {new['auroc']:<10.3f} {auroc['difference']:+.3f} "
        f"({low:+.3f} to {high:+.3f}; p = {auroc['p_value']:.2g})"
    )
    for name, share, key in (
        ("false alarms", "false_alarms", "false_alarms"),
        ("found", "recall", "found"),
    ):
        both = of[key]
        yield (
            f"{name:<22} {percent(old[share]):<10} {percent(new[share]):<10} "
            f"{len(both['only_new'])} more, {len(both['only_old'])} fewer "
            f"(p = {both['p_value']:.2g})"
        )
    for before, after in zip(old["at_rates"], new["at_rates"], strict=True):
        name = f"found at {percent(before['rate'])}"
        yield f"{name:<22} {percent(before['recall']):<10} {percent(after['recall']):<10}"
    for name, key in (("False alarms", "false_alarms"), ("Found", "found")):
        for model, side in (("old", "only_old"), ("new", "only_new")):
            paths = of[key][side]
            if paths and n_listed:
                yield ""
                yield f"{name} by the {model} model only:"
                yield from (f"  {path}" for path in paths[:n_listed])
                if len(paths) > n_listed:
                    yield f"  and {len(paths) - n_listed} more"
    yield ""
    yield from dict.fromkeys([*old["remarks"], *new["remarks"]])
