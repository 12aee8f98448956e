"""Labelled images of a command: folders of normal images and of anomalies, or a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._label_tables import Said, read_said
from skanomaly_vit.cli._options import EXISTING_FILE
from skanomaly_vit.cli._terminal import Unreadable

if TYPE_CHECKING:
    from skanomaly_vit.detector import TransformalyDetector

NORMAL, ANOMALY = "normal", "anomaly"

#: What the column label may say, and what it means. Numbers are not there: 1 means either.
LABELS = {"normal": NORMAL, "fine": NORMAL, "anomaly": ANOMALY, "defect": ANOMALY}

_FOLDER = click.Path(exists=True, file_okay=False)


@dataclass
class LabelledPaths:
    """Paths of images, each with its label and its kind."""

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, path: str, label: str, kind: str) -> None:
        self.paths.append(path)
        self.labels.append(label)
        self.kinds.append(kind)

    def readable(self, detector: TransformalyDetector, unreadable: Unreadable) -> LabelledPaths:
        """Those that the detector can read; the others are told."""
        from skanomaly_vit.cli._scoring import select_readable

        left = set(select_readable(self.paths, detector, unreadable))
        chosen = LabelledPaths()
        for path, label, kind in zip(self.paths, self.labels, self.kinds, strict=True):
            if path in left:
                chosen.add(path, label, kind)
        return chosen


def labelled_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which images are normal and which are anomalies."""
    for option in (
        click.option(
            "--leave-out-known",
            is_flag=True,
            help="Leave out images that the model knows, which are an error otherwise.",
        ),
        click.option(
            "--root",
            type=_FOLDER,
            metavar="FOLDER",
            help="Folder that the paths in TABLE begin from.  [default: that of TABLE]",
        ),
        click.option(
            "--labels",
            "table",
            type=EXISTING_FILE,
            metavar="TABLE",
            help="A csv file with the columns path, label (normal or anomaly) and, if you like, "
            "kind.",
        ),
        click.option(
            "--anomaly",
            multiple=True,
            type=_FOLDER,
            metavar="FOLDER",
            help="Anomalies. Its subfolders are kinds of defects. May be repeated.",
        ),
        click.option(
            "--normal",
            multiple=True,
            type=_FOLDER,
            metavar="FOLDER",
            help="Normal images that the model has not seen. May be repeated.",
        ),
    ):
        command = option(command)
    return command


def list_labelled(
    normal: Sequence[str],
    anomaly: Sequence[str],
    table: str | None,
    root: str | None,
    unreadable: Unreadable,
) -> LabelledPaths:
    """List the images that the options name."""
    if root is not None and table is None:
        raise click.UsageError("--root is for --labels, whose paths begin there.")
    found = LabelledPaths()
    for path in list_inputs(normal, unreadable):
        found.add(path, NORMAL, NORMAL)
    for folder in anomaly:
        for path in list_inputs([folder], unreadable):
            found.add(path, ANOMALY, _kind_of(path, folder))
    if table is not None:
        for said, kind in read_labels(table, root):
            found.add(said.path, said.word, NORMAL if said.word == NORMAL else kind)
    lacking = [label for label in (NORMAL, ANOMALY) if label not in found.labels]
    if lacking:
        have = "--labels" if table else "--normal and --anomaly"
        raise click.UsageError(
            f"there are no images that are {' or '.join(lacking)}; {have} must give both: pass "
            "--normal FOLDER and --anomaly FOLDER, or a TABLE with rows of both labels."
        )
    return found


def read_labels(table: str, root: str | None) -> Iterator[tuple[Said, str]]:
    """Rows of a table of labels, each with the kind of defect that it names, if it is one."""
    for said in read_said(table, root, "label", LABELS, ("kind",)):
        yield said, said.more["kind"].strip() or ANOMALY


def _kind_of(path: str, folder: str) -> str:
    """Name of the subfolder that holds an image; of the folder itself without one."""
    first, *below = os.path.relpath(path, folder).split(os.sep)
    return first if below else os.path.basename(os.path.abspath(folder))
