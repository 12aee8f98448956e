"""The command ``evaluate``: tells whether a model is good enough."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._detectors import load_detector, require_any_maps
from skanomaly_vit.cli._labelled import (
    ANOMALY,
    LabelledPaths,
    labelled_options,
    list_labelled,
)
from skanomaly_vit.cli._options import (
    LimitMissed,
    batch_size_option,
    device_option,
    epilog,
    jobs_option,
    max_pixels_option,
    model_argument,
    readers_option,
    require,
)
from skanomaly_vit.cli._steps import finish, speaking_of_options
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    from sklearn.utils import Bunch

    from skanomaly_vit.detector import TransformalyDetector

_NOTE = (
    "Exit code 4: --min-auroc or --max-false-alarms is missed; the figures are printed all the "
    "same. A model is numbers and text; reading it runs no code."
)

# AnomalyMapDisplay draws no more.
_MOST = 50


@click.command(
    "evaluate",
    short_help="Measure a model on images whose labels are known.",
    epilog=epilog(
        "skanomaly evaluate parts.skanomaly --normal parts/test/good --anomaly parts/test/defect",
        "skanomaly evaluate parts.skanomaly --labels parts.csv --min-auroc 0.9 --format json",
        note=_NOTE,
    ),
)
@model_argument
@labelled_options
@click.option(
    "--worst",
    type=click.IntRange(0, _MOST),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of misses and of false alarms to list.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Write scores.png, misses.png and false_alarms.png there; created if missing.",
)
@readers_option
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    metavar="SHARE",
    help="Confidence of the intervals.",
)
@click.option(
    "--min-auroc",
    type=click.FloatRange(0, 1),
    metavar="AUROC",
    help="Exit with code 4 if the measured AUROC is lower.",
)
@click.option(
    "--max-false-alarms",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Exit with code 4 if the measured share is higher.",
)
@device_option
@jobs_option
@batch_size_option
@max_pixels_option
def evaluate_command(
    model: str,
    normal: tuple[str, ...],
    anomaly: tuple[str, ...],
    table: str | None,
    root: str | None,
    leave_out_known: bool,
    worst: int,
    pictures: str | None,
    kind: str,
    confidence: float,
    min_auroc: float | None,
    max_false_alarms: float | None,
    **options: Any,
) -> None:
    """Measure MODEL on images that it has not seen, normal ones and anomalies.

    The command prints the AUROC, the share of anomalies found at the threshold of the model, at
    other rates of false alarms and by kind of defect, and the measured share of false alarms, each
    with its interval; and the worst misses and false alarms. It refuses images that the model has
    learned from: their content tells, whatever their names are.
    """
    if pictures is not None:
        require("plot", "--pictures", "leave --pictures out")
    unreadable = Unreadable()
    labelled = list_labelled(normal, anomaly, table, root, unreadable)
    detector = load_detector(model, **options)
    if pictures is not None:
        require_any_maps(detector)
    labelled = labelled.readable(detector, unreadable)
    found = evaluate_paths(detector, labelled, leave_out_known, confidence)
    described = {"model": model, **describe_evaluation(detector, found, labelled, worst)}
    click.echo(json.dumps(described, indent=2) if kind == "json" else as_text(described))
    if pictures is not None:
        _draw(pictures, detector, found, labelled, worst)
        tell(f"Pictures: {pictures}")
    _require_limits(found, min_auroc, max_false_alarms)
    finish(unreadable, f"{found.n_normal + found.n_anomalies} images evaluated")


def evaluate_paths(
    detector: TransformalyDetector, labelled: LabelledPaths, leave_out: bool, confidence: float
) -> Bunch:
    """`evaluate_fitted` on labelled paths."""
    from skanomaly_vit.evaluation import evaluate_fitted

    with speaking_of_options():
        return evaluate_fitted(
            detector,
            labelled.paths,
            labelled.labels,
            kinds=labelled.kinds,
            anomaly_label=ANOMALY,
            confidence=confidence,
            known_images="leave_out" if leave_out else "raise",
        )


def describe_evaluation(
    detector: TransformalyDetector, found: Bunch, labelled: LabelledPaths, worst: int
) -> dict[str, Any]:
    """An evaluation as values that JSON has."""
    at_rates, by_kind = found.at_rates, found.by_kind
    return {
        "n_normal": found.n_normal,
        "n_anomalies": found.n_anomalies,
        "n_left_out": found.n_left_out,
        "confidence": found.confidence,
        "auroc": found.auroc,
        "auroc_interval": list(found.auroc_interval),
        "threshold": found.threshold,
        "threshold_rate": detector.contamination_,
        "n_false_alarms": found.n_false_alarms,
        "false_alarms": found.false_alarms.share,
        "false_alarms_interval": list(found.false_alarms.interval),
        "n_found": found.n_found,
        "recall": found.recall.share,
        "recall_interval": list(found.recall.interval),
        "at_rates": _rows(at_rates),
        "by_kind": _rows(by_kind),
        "misses": _worst(detector, found, labelled, found.misses[:worst]),
        "alarms": _worst(detector, found, labelled, found.alarms[:worst]),
        "remarks": found.remarks,
    }


def _rows(columns: Bunch) -> list[dict[str, Any]]:
    plain = {name: values.tolist() for name, values in columns.items()}
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def _worst(
    detector: TransformalyDetector, found: Bunch, labelled: LabelledPaths, chosen: Any
) -> list[dict[str, Any]]:
    from skanomaly_vit.cli._p_values import known_p_values

    paths = [labelled.paths[i] for i in chosen]
    if not paths:
        return []
    p_values = known_p_values(image.p_value for image in detector.iter_scores(paths))
    return [
        {
            "path": path,
            "kind": labelled.kinds[i],
            "score": float(found.scores[i]),
            "p_value": p_value,
        }
        for i, path, p_value in zip(chosen, paths, p_values, strict=True)
    ]


def as_text(described: dict[str, Any]) -> str:
    """An evaluation for people."""
    from skanomaly_vit._utils.provenance import printable

    # Paths and labels may come from anyone; they must not steer the terminal.
    return "\n".join(map(printable, _lines(described)))


def _lines(of: dict[str, Any]) -> Iterator[str]:
    from skanomaly_vit._utils.certificates import percent

    yield f"{of['n_normal']} normal images, {of['n_anomalies']} anomalies"
    if of["n_left_out"]:
        yield f"left out: {of['n_left_out']} that the model knows"
    low, high = of["auroc_interval"]
    yield _row("AUROC", f"{of['auroc']:.3f}", f"{low:.3f} to {high:.3f}")
    yield ""
    rate = "" if of["threshold_rate"] is None else f", set at {percent(of['threshold_rate'])}"
    yield f"At the threshold of the model ({of['threshold']:.4g}{rate}):"
    for name, n_found, n, key in (
        ("false alarms", of["n_false_alarms"], of["n_normal"], "false_alarms"),
        ("found", of["n_found"], of["n_anomalies"], "recall"),
    ):
        yield _share_row(name, n_found, n, of[f"{key}_interval"])
    for each in of["by_kind"]:
        interval = each["recall_interval"]
        yield _share_row(f"  {each['kind']}", each["n_found"], each["n_images"], interval)
    yield ""
    yield "Found at other thresholds:"
    for each in of["at_rates"]:
        name = f"{percent(each['rate'])} false alarms"
        yield _row(name, percent(each["recall"]), _range(each["recall_interval"]))
    for title, key in (
        ("Worst misses (anomalies that look most normal)", "misses"),
        ("Worst false alarms (normal images that look most abnormal)", "alarms"),
    ):
        yield from _listing(title, of[key])
    yield ""
    yield f"In brackets: intervals of {percent(of['confidence'])}."
    yield from of["remarks"]


def _listing(title: str, images: list[dict[str, Any]]) -> Iterator[str]:
    if not images:
        return
    yield ""
    yield f"{title}:"
    yield f"  {'score':>9}  {'p-value':>8}  path"
    for each in images:
        p_value = "" if each["p_value"] is None else f"{each['p_value']:.4f}"
        yield f"  {each['score']:>9.4g}  {p_value:>8}  {each['path']}"


def _share_row(name: str, n_found: int, n: int, interval: list[float]) -> str:
    from skanomaly_vit._utils.certificates import percent

    return _row(f"  {name}", f"{percent(n_found / n)}, {n_found} of {n}", _range(interval))


def _range(interval: list[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _row(name: str, value: str, interval: str) -> str:
    return f"{name:<22} {value:<20} ({interval})"


def _require_limits(found: Bunch, min_auroc: float | None, max_false_alarms: float | None) -> None:
    missed = []
    if min_auroc is not None and found.auroc < min_auroc:
        missed.append(f"the AUROC is {found.auroc:.4g}, below --min-auroc {min_auroc:g}")
    if max_false_alarms is not None and found.false_alarms.share > max_false_alarms:
        missed.append(
            f"the share of false alarms is {found.false_alarms.share:.4g}, above "
            f"--max-false-alarms {max_false_alarms:g}"
        )
    if missed:
        raise LimitMissed(f"{'; '.join(missed)}.")


def _draw(
    folder: str, detector: TransformalyDetector, found: Bunch, labelled: LabelledPaths, worst: int
) -> None:
    from skanomaly_vit.cli._pictures import save_display
    from skanomaly_vit.display import AnomalyMapDisplay, EvaluationDisplay

    os.makedirs(folder, exist_ok=True)
    counted = [i for i, score in enumerate(found.scores) if score == score]  # NaN: left out
    labels, kinds = ([of[i] for i in counted] for of in (labelled.labels, labelled.kinds))

    def draw_scores() -> EvaluationDisplay:
        return EvaluationDisplay.from_predictions(
            found.scores[counted],
            labels,
            kinds=kinds,
            offset=found.threshold,
            anomaly_label=ANOMALY,
        )

    def draw_maps() -> AnomalyMapDisplay:
        titles = [f"{os.path.basename(labelled.paths[i])}: {found.scores[i]:.4g}" for i in chosen]
        paths = [labelled.paths[i] for i in chosen]
        return AnomalyMapDisplay.from_estimator(detector, paths, titles=titles)

    save_display(draw_scores, os.path.join(folder, "scores.png"))
    for name, images in (("misses", found.misses), ("false_alarms", found.alarms)):
        chosen = images[:worst]
        if len(chosen):
            save_display(draw_maps, os.path.join(folder, f"{name}.png"))
