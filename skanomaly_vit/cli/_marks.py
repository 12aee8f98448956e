"""Marks: images that people call fine or defect, from a table or from folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from skanomaly_vit.cli._inputs import list_inputs
from skanomaly_vit.cli._label_tables import read_said
from skanomaly_vit.cli._terminal import Unreadable, tell

if TYPE_CHECKING:
    import numpy as np

    from skanomaly_vit.detector import TransformalyDetector

FINE, DEFECT = "fine", "defect"

#: What the column mark may say.
MARKS = {FINE: FINE, DEFECT: DEFECT}


@dataclass(frozen=True)
class Marked:
    """Paths of images that are fine, and of defects."""

    fine: list[str]
    defects: list[str]


def list_marked(
    table: str | None,
    root: str | None,
    fine: Sequence[str],
    defect: Sequence[str],
    unreadable: Unreadable,
) -> Marked:
    """List the images that the options mark."""
    if root is not None and table is None:
        raise click.UsageError("--root is for --marks, whose paths begin there.")
    marked = Marked(list(list_inputs(fine, unreadable)), list(list_inputs(defect, unreadable)))
    for said in read_said(table, root, "mark", MARKS) if table else []:
        (marked.fine if said.word == FINE else marked.defects).append(said.path)
    if not marked.fine and not marked.defects:
        raise click.UsageError(
            "nothing is marked: pass --marks TABLE (a csv file with the columns path and mark, "
            "fine or defect), --fine FOLDER, or --defect FOLDER."
        )
    return marked


def without_known(marked: Marked, detector: TransformalyDetector) -> Marked:
    """Marked images that are new to the model, each once.

    Raises
    ------
    UsageError
        If an image is marked as both, or the model has learned from a defect as a normal image.
    """
    import numpy as np

    fine, defects = (_contents(paths, detector) for paths in (marked.fine, marked.defects))
    both = np.flatnonzero(np.isin(defects, fine))
    if len(both):
        raise click.UsageError(
            f"{marked.defects[both[0]]!r} is marked as a defect, and it or a copy of it as fine. "
            "Decide which it is."
        )
    summary = detector._fit_summary
    if summary is None:
        return marked
    known = [summary.learned_units, summary.held_out_units]
    wrong = np.flatnonzero(np.isin(defects, np.concatenate(known)))
    if len(wrong):
        raise click.UsageError(
            f"{marked.defects[wrong[0]]!r} is marked as a defect, and the model was fitted on it "
            "as a normal image, which cannot be undone. Fit again without it, and look for more "
            "with `skanomaly audit`."
        )
    new = ~np.isin(fine, np.concatenate(known))
    if not new.all():
        tell(f"{(~new).sum()} images marked fine are known to the model already, and left out.")
    first = np.zeros(len(fine), dtype=bool)
    first[np.unique(fine, return_index=True)[1]] = True
    firsts = np.unique(defects, return_index=True)[1]
    return Marked(
        [path for path, chosen in zip(marked.fine, new & first, strict=True) if chosen],
        [marked.defects[i] for i in sorted(firsts)],
    )


def _contents(paths: Sequence[str], detector: TransformalyDetector) -> np.ndarray:
    import numpy as np

    from skanomaly_vit._images.opening import open_images
    from skanomaly_vit._images.units import find_units

    if not paths:
        return np.empty(0)
    return find_units(open_images(list(paths), max_pixels=detector.max_pixels)).contents
