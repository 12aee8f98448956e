"""Helpers of the benchmarks: images from class folders, arguments, tables, circumstances."""

from __future__ import annotations

import argparse
import csv
import functools
import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import joblib
import numpy as np
import torch

from skanomaly_vit import TransformalyDetector, __version__

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


#: Columns of a table: title -> alignment and width, precision.
Columns: TypeAlias = dict[str, tuple[str, str]]


class DataError(Exception):
    """The images asked for are not there."""


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def not_negative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def test_size(text: str) -> int:
    if int(text) == 1:
        raise argparse.ArgumentTypeError("1 image cannot be normal and abnormal; pass 0 or 2 up")
    return not_negative(text)


def flag_or_path(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def find_classes(data: Path) -> dict[str, list[Path]]:
    """Return the class folders of each part of the tree, sorted by name."""
    folders = {part: subfolders(data / part) for part in ("train", "test")}
    train, test = ([folder.name for folder in folders[part]] for part in ("train", "test"))
    if train != test:
        raise DataError(f"classes differ: train has {train}, test has {test}")
    if len(train) < 2:
        raise DataError(f"{data / 'train'} holds {train}; at least two class folders are needed")
    return folders


def subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; --data has to hold train/<class>/ and test/<class>/")
    return sorted(path for path in folder.iterdir() if path.is_dir())


def choose_classes(wanted: list[str], folders: list[Path]) -> list[str]:
    known = [folder.name for folder in folders]
    if wanted == ["all"]:
        return known
    for name in wanted:
        if name not in known:
            raise DataError(f"no class {name!r}; there are {', '.join(known)} (or 'all', alone)")
    return wanted


def split_classes(folders: list[Path], setting: str, name: str) -> tuple[list[Path], list[Path]]:
    """Return the folders of normal and of abnormal classes."""
    named = [folder for folder in folders if folder.name == name]
    others = [folder for folder in folders if folder.name != name]
    return (named, others) if setting == "unimodal" else (others, named)


def sample(folders: list[Path], n_images: int, seed: int, *, everything: bool = False) -> list[str]:
    """Draw images at random, from all folders alike as far as they go; `seed` decides which."""
    share, rest = divmod(n_images, len(folders))
    paths = []
    for i, folder in enumerate(folders):
        wanted = None if everything else share + (i < rest)
        # A generator of its own, so that the draw does not depend on other classes.
        rng = np.random.default_rng([seed, *folder.name.encode()])
        paths += rng.permutation(images_in(folder))[:wanted].tolist()
    return paths


def images_in(folder: Path) -> list[str]:
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"no images in {folder} (files ending in {', '.join(sorted(SUFFIXES))})")
    return paths


@functools.cache
def _load(path: str) -> TransformalyDetector:
    return joblib.load(path)


def score_with(path: str, images: np.ndarray) -> np.ndarray:
    """Score with a detector from a file, which a worker process reads once."""
    return _load(path).score_samples(images)


def size_of(detector: TransformalyDetector) -> float:
    """Megabytes of the model file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.skanomaly")
        detector.save(path)
        return path.stat().st_size / 1e6


def peak_memory() -> float:
    """Return the most memory that this process has had resident so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def print_circumstances(seed: int) -> None:
    """Print the circumstances of a number: command, versions, machine, seed."""
    versions = ["torch", "timm", "scikit-learn"]
    print("$", shlex.join(["python", *sys.argv]))
    print(f"skanomaly-vit {__version__},", ", ".join(f"{v} {version(v)}" for v in versions))
    print(f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, seed {seed}")


def print_titles(columns: Columns) -> None:
    print(" ".join(f"{title:{width}}" for title, (width, _) in columns.items()), flush=True)


def print_row(columns: Columns, row: dict[str, Any]) -> None:
    cells = (f"{row[title]:{width}{form}}" for title, (width, form) in columns.items())
    print(" ".join(cells), flush=True)


def append_csv(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def merge_csv(path: Path, row: dict[str, Any], key: Sequence[str]) -> None:
    """Write a row, replacing a row with the same values under `key`."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    new = {name: str(value) for name, value in row.items()}
    same = [i for i, old in enumerate(rows) if all(old[name] == new[name] for name in key)]
    rows[slice(same[0], same[0] + 1) if same else slice(len(rows), None)] = [new]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(new))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)
