"""HTML report of scores, anomaly maps and settings: `write_report`."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from skanomaly_vit._images.map_range import check_map_range
from skanomaly_vit._images.opening import open_images, reading_options
from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit._utils.files import check_target, write_atomically
from skanomaly_vit._utils.labels import AUTO, as_labels, is_auto, which_are_anomalies
from skanomaly_vit._utils.provenance import parameters_of, printable, versions
from skanomaly_vit.calibration._p_values import CalibrationScores
from skanomaly_vit.display._overlay import colorbar
from skanomaly_vit.report._calibration import find_calibration
from skanomaly_vit.report._evidence import draw_evidence
from skanomaly_vit.report._figures import (
    certify,
    check_detector,
    count_kinds,
    remark,
    score,
    summarize,
)
from skanomaly_vit.report._histogram import draw_histogram
from skanomaly_vit.report._names import Names, name_images
from skanomaly_vit.report._page import Card, ImageRow, Page
from skanomaly_vit.report._pictures import (
    Album,
    Copies,
    FolderAlbum,
    copy_images,
    enlarge,
)
from skanomaly_vit.report._rendering import render, require_packages
from skanomaly_vit.report._written import Report

Array: TypeAlias = np.ndarray[Any, Any]


def write_report(
    det: Any,
    X: Any,
    y: Any = None,
    path: str | os.PathLike[str] = "report.html",
    *,
    names: Any = None,
    title: str | None = None,
    anomaly_label: Any = AUTO,
    n_maps: int = 12,
    folder: bool = False,
    map_range: tuple[float, float] | None = None,
    in_order: bool = False,
    callback: Callable[[int, int], object] | None = None,
) -> Report:
    """Score images and write the results into one self-contained HTML file.

    The page opens from a disk, without a network. It shows the scores with a threshold to move,
    the expected share of false alarms, the most abnormal and the least certain images with their
    anomaly maps, a list of all images to sort, filter, enlarge and mark, and the settings of the
    detector. It saves marks (``fine``, ``defect``, a note) as a csv file.

    Parameters
    ----------
    det : estimator
        A fitted outlier detector, or a pipeline that ends in one: with ``score_samples`` (higher =
        more normal) and ``offset_``, or a ``decision_function`` that is ``score_samples`` minus a
        constant. The report shows maps if `det` has ``anomaly_map``.
    X : images
        The n images, of any form that `det` takes.
    y : array-like of shape (n,) or None, default=None
        Label of each image. With labels the report shows metrics such as AUROC, and how many
        images of each label are flagged.
    path : str or path-like, default="report.html"
        The file to write, in an existing folder. `write_report` replaces an older file.
    names : array-like of shape (n,) or None, default=None
        Name of each image. ``None`` is the path below the common folder of all images, or the
        index in `X`.
    title : str or None, default=None
        Heading. ``None`` is "Anomaly report".
    anomaly_label : label, list of labels or "auto", default="auto"
        Labels of anomalies in `y`; ``"auto"`` is -1 among +1 and -1.
    n_maps : int, default=12
        Number of large images with maps among the most abnormal, and among the least certain.
    folder : bool, default=False
        Whether pictures are files in a folder beside `path` (``report_files`` beside
        ``report.html``), with a large copy of every image. The page then needs that folder.
    map_range : tuple of two floats or None, default=None
        Values of the maps at the ends of the color scale. ``None`` is (2, 8) for a
        `TransformalyDetector` in all pictures of maps, so that those of several calls compare; for
        another detector, whose maps may have another unit, it is the range of the maps shown.
    in_order : bool, default=False
        Whether the images are in the order in which they came. The report then has a chart of the
        evidence that the line has changed since the calibration, by `LineMonitor`.
    callback : callable or None, default=None
        Called as ``callback(done, total)`` after each step of the work, for a progress bar.

    Returns
    -------
    report : Report
        The written file, as its ``path``. It shows itself in a notebook, and has ``open()`` and
        ``save(path)``.

    Raises
    ------
    ImportError
        If Jinja2 or matplotlib is missing: ``pip install 'skanomaly-vit[report]'``.
    OSError
        If `path` is a directory, or its folder is missing or not writable, or a file has the name
        of the folder of pictures.
    ValueError
        If an image is unreadable, `y` or `names` differs from `X` in length, a score is not
        finite, `map_range` is no range, or `det` has no threshold. `write_report` then writes no
        file.

    See Also
    --------
    skanomaly_vit.TransformalyDetector : A detector with anomaly maps.
    skanomaly_vit.evaluation.evaluate : Computes the metrics alone.

    Notes
    -----
    All images pass through the detector once; large images pass once more, for their maps.

    The browser keeps marks, if it may, under the content of the images: a report on the same images
    shows them again, whatever the detector. In ``marks.csv`` (header ``path,mark,note``) a path is
    relative to the common folder of all images, which the page names.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.report import write_report
    >>> normal = np.random.default_rng(0).integers(100, 156, (12, 32, 32, 3), dtype=np.uint8)
    >>> det = TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(normal)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(det, normal, path=f"{folder}/report.html", n_maps=0).path.name
    'report.html'
    """
    require_packages()
    target = check_target(path, "report.html")
    check_detector(det)
    if not isinstance(n_maps, Integral) or isinstance(n_maps, bool) or n_maps < 0:
        raise ValueError(f"n_maps={n_maps!r} is not an integer of at least 0")
    if map_range is not None or find_attribute(det, "_normal_patches") is not None:
        map_range = check_map_range(map_range)
    source = open_images(X, **reading_options(det))
    is_anomaly, labels = _read_labels(y, anomaly_label, len(source))
    named = name_images(names, source)
    n_shown = min(int(n_maps), len(source))
    steps = _Steps(2 * len(source) + 2 * n_shown, callback)
    with FolderAlbum(target) if folder else Album() as album:
        # Before scoring, as it finds unreadable images.
        copies = copy_images(source, album, getattr(det, "n_jobs", None), steps.advance)
        scores, offset = score(det, X, len(source), steps.advance)
        calibration = find_calibration(det)
        rows = _make_rows(named, scores, offset, labels, copies, CalibrationScores.of(det))
        uncertain = np.argsort(np.abs(scores - offset), kind="stable")
        shown = [*list(rows)[:n_shown], *uncertain[:n_shown].tolist()]
        enlarged, scale = enlarge(det, X, source, shown, album, steps.advance, map_range)
        cards = [Card(rows[i], enlarged[i]) for i in shown]
        known = None if calibration is None else calibration.scores
        evidence = draw_evidence(scores, calibration) if in_order else None
        page = Page(
            title=printable("Anomaly report" if title is None else str(title)),
            created=datetime.now().astimezone(),
            statistics=summarize(scores, offset, is_anomaly, calibration),
            kinds=count_kinds(scores, offset, labels, is_anomaly),
            guarantees=certify(det),
            notes=remark(det, is_anomaly, calibration),
            evidence=evidence,
            histogram=draw_histogram(scores, offset, is_anomaly, known),
            most_abnormal=cards[:n_shown],
            least_certain=cards[n_shown:],
            scale=scale,
            is_range_given=map_range is not None,
            colorbar=None if scale is None else colorbar().embed(),
            rows=list(rows.values()),
            calibration=calibration,
            offset=offset,
            detector=type(det).__name__,
            root=printable(named.root),
            has_files=folder,
            parameters=parameters_of(det),
            versions=versions(),
            fingerprint=find_attribute(det, "backbone_fingerprint_"),
        )
        write_atomically(render(page), target)
    return Report(target)


class _Steps:
    """Reports progress to a callback."""

    def __init__(self, total: int, callback: Callable[[int, int], object] | None) -> None:
        self._done, self._total, self._callback = 0, total, callback

    def advance(self, n: int = 1) -> None:
        self._done += n
        if self._callback is not None:
            self._callback(self._done, self._total)


def _read_labels(y: Any, anomaly_label: Any, n: int) -> tuple[Array | None, list[str]]:
    """Mask of the anomalies, and the shown label of each image."""
    if y is None:
        return None, [""] * n
    values = as_labels(y)
    if len(values) != n:
        raise ValueError(f"y holds {len(values)} labels and X {n} images; pass one for each image")
    is_anomaly = which_are_anomalies(values, anomaly_label)
    if is_auto(anomaly_label):
        return is_anomaly, np.where(is_anomaly, "anomaly", "normal").tolist()
    return is_anomaly, [printable(str(value)) for value in values]


def _make_rows(
    named: Names,
    scores: Array,
    offset: float,
    labels: list[str],
    copies: list[Copies],
    known: CalibrationScores | None,
) -> dict[int, ImageRow]:
    """Row of each image, under its index in `X`, the most abnormal image first."""
    p_values = None if known is None else known.p_values(scores)
    return {
        int(i): ImageRow(
            rank=rank,
            name=named.shown[i],
            path=named.paths[i],
            score=float(scores[i]),
            p_value=None if p_values is None else float(p_values[i]),
            is_flagged=bool(scores[i] < offset),
            label=labels[i],
            copies=copies[i],
        )
        for rank, i in enumerate(np.argsort(scores, kind="stable"), 1)
    }
