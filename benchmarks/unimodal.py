"""Measure AUROC, speed and memory on a class-per-folder tree of images.

The paper (arXiv 2112.04185) has two settings. *Unimodal*: one class is normal, the others are
abnormal. *Multimodal*: one class is abnormal, the others are normal. Each fit prints a row: the
AUROC of the pre-trained space, of the discrepancy space, and of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from harness import (
    Columns,
    DataError,
    append_csv,
    choose_classes,
    find_classes,
    flag_or_path,
    not_negative,
    peak_memory,
    positive,
    print_circumstances,
    print_row,
    print_titles,
    sample,
    split_classes,
    test_size,
)
from sklearn.metrics import roc_auc_score

from skanomaly_vit import TransformalyDetector, __version__
from skanomaly_vit.exceptions import WeightsUnavailableError

SETTINGS = {"unimodal": ["unimodal"], "multimodal": ["multimodal"]}
SETTINGS["both"] = [*SETTINGS["unimodal"], *SETTINGS["multimodal"]]
AUROCS = ["pretrained", "discrepancy", "both"]
COLUMNS: Columns = {
    "setting": ("<10", ""),
    "class": ("<14", ""),
    "train": (">6", ""),
    "test": (">6", ""),
    "pretrained": (">11", ".1f"),
    "discrepancy": (">12", ".1f"),
    "both": (">6", ".1f"),
    "fit_s": (">8", ".1f"),
    "images_per_s": (">13", ".1f"),
    "peak_mb": (">8", ".0f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        folders = find_classes(args.data)
        names = choose_classes(args.normal_class, folders["train"])
        print_header(args)
        rows = [
            run(args, folders, setting, name)
            for setting in SETTINGS[args.setting]
            for name in names
        ]
    except (DataError, WeightsUnavailableError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    for setting in SETTINGS[args.setting]:
        print_row(COLUMNS, mean_row([row for row in rows if row["setting"] == setting]))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="holds train/<class>/ and test/<class>/, folders of images",
    )
    add(
        "--normal-class",
        action="append",
        required=True,
        metavar="NAME",
        help="the class that is normal (unimodal) or abnormal (multimodal); repeatable, or 'all'",
    )
    add("--setting", choices=list(SETTINGS), default="both", help="default: both")
    add("--train", type=positive, default=500, help="training images of a fit; default: 500")
    add(
        "--test",
        type=test_size,
        default=600,
        help="test images, half of them normal; 0 = all there are; default: 600",
    )
    add("--backbone", default="embedded", help="'embedded' (default) or a timm model's name")
    add(
        "--pretrained",
        type=flag_or_path,
        default=True,
        help="true (default), false (random weights), or the path of a checkpoint",
    )
    add("--image-size", type=positive, help="pixels; default: the backbone's own")
    add("--n-blocks", type=positive, default=10, help="students; default: 10")
    add(
        "--student",
        choices=["ridge", "block"],
        default="ridge",
        help="kind of student; default: ridge",
    )
    add("--seed", type=not_negative, default=0, help="default: 0")
    add("--jobs", type=int, default=1, help="threads that decode images, -1 = all; default: 1")
    add("--csv", type=Path, metavar="FILE", help="append the rows to FILE")
    return parser


def run(
    args: argparse.Namespace, folders: dict[str, list[Path]], setting: str, name: str
) -> dict[str, Any]:
    """Fit on the normal class or classes, score test images, and print a row."""
    normal, abnormal = split_classes(folders["train"], setting, name)
    train = sample(normal, args.train, args.seed)
    normal, abnormal = split_classes(folders["test"], setting, name)
    test_normal = sample(normal, args.test - args.test // 2, args.seed, everything=args.test == 0)
    test_abnormal = sample(abnormal, args.test // 2, args.seed, everything=args.test == 0)
    test = test_normal + test_abnormal

    detector = make_detector(args)
    start = perf_counter()
    detector.fit(train)
    fitted = perf_counter()
    spaces = detector.score_spaces(test)
    scored = perf_counter()

    scores = {**spaces, "both": spaces["pretrained"] + spaces["discrepancy"]}
    is_abnormal = np.repeat([0, 1], [len(test_normal), len(test_abnormal)])
    row = {
        "setting": setting,
        "class": name,
        "train": len(train),
        "test": len(test),
        **{key: 100 * roc_auc_score(is_abnormal, -scores[key]) for key in AUROCS},
        "fit_s": fitted - start,
        "images_per_s": len(test) / (scored - fitted),
        "peak_mb": peak_memory(),
    }
    print_row(COLUMNS, row)
    if args.csv:
        append_csv(args.csv, {**row, **settings_of(args)})
    return row


def make_detector(args: argparse.Namespace) -> TransformalyDetector:
    return TransformalyDetector(
        backbone=args.backbone,
        pretrained=args.pretrained,
        image_size=args.image_size,
        n_blocks=args.n_blocks,
        student=args.student,
        n_jobs=args.jobs,
        random_state=args.seed,
    )


def print_header(args: argparse.Namespace) -> None:
    print_circumstances(args.seed)
    print("AUROC in %; peak_mb: resident memory of the process, highest so far\n")
    print_titles(COLUMNS)


def mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    mean = {key: np.mean([row[key] for row in rows]) for key in [*AUROCS, "fit_s", "images_per_s"]}
    texts = {
        "setting": rows[0]["setting"],
        "class": f"mean of {len(rows)}",
        "train": "",
        "test": "",
    }
    return {**texts, **mean, "peak_mb": rows[-1]["peak_mb"]}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the further columns of a line of the CSV file."""
    names = ["backbone", "image_size", "n_blocks", "student", "seed", "jobs"]
    settings = {name: getattr(args, name) for name in names}
    return {**settings, "weights": args.pretrained, "version": __version__}


if __name__ == "__main__":
    main()
