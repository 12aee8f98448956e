"""HTML report of scores, anomaly maps and settings: `write_report`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import joblib
import numpy as np

from skanomaly_vit._images.pixels import shrink
from skanomaly_vit._images.source import ImageSource, open_images, reading_options
from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit._utils.files import check_target, write_atomically
from skanomaly_vit._utils.labels import AUTO, as_labels, is_auto, which_are_anomalies
from skanomaly_vit._utils.provenance import parameters_of, printable, versions
from skanomaly_vit.display._overlay import (
    Picture,
    Scale,
    colorbar,
    data_uri,
    encode,
    overlay,
    shrink_map,
)
from skanomaly_vit.display._scores import ScoreDisplay
from skanomaly_vit.report._figures import (
    certify,
    check_detector,
    has_maps,
    remark,
    score,
    summarize,
)
from skanomaly_vit.report._page import Card, ImageRow, Page, render, require_packages

Array: TypeAlias = np.ndarray[Any, Any]

_THUMBNAIL = 96  # pixels of the longest side, in the table

_LARGE = 360  # pixels of the longest side, beside maps

_HISTOGRAMS = {"wide": (9.4, 3.0), "narrow": (4.2, 3.4)}  # inches

_THEMES = {"light": ("#1c232c", "#ffffff"), "dark": ("#e4e7ec", "#14181d")}  # ink and ground

_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")

_BINS = 40


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
    callback: Callable[[int, int], object] | None = None,
) -> Path:
    """Score images and write the results into one self-contained HTML file.

    The file holds a summary, a histogram of the scores, the most abnormal and the least certain
    images with their anomaly maps, a table of all images that sorts and filters, and the settings
    of the detector. It opens from a disk, without a network.

    Parameters
    ----------
    det : estimator
        A fitted outlier detector, or a pipeline that ends in one: with ``score_samples`` (higher =
        more normal) and ``offset_``, or a ``decision_function`` that is ``score_samples`` minus a
        constant. The report shows maps if `det` has ``anomaly_map``.
    X : images
        The n images, of any form that `det` takes.
    y : array-like of shape (n,) or None, default=None
        Label of each image. With labels the report shows metrics such as AUROC.
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
        Number of large images among the most abnormal, and among the least certain.
    callback : callable or None, default=None
        Called as ``callback(done, total)`` after each step of the work, for a progress bar.

    Returns
    -------
    path : pathlib.Path
        The written file.

    Raises
    ------
    ImportError
        If Jinja2 or matplotlib is missing: ``pip install 'skanomaly-vit[report]'``.
    OSError
        If `path` is a directory, or its folder is missing or not writable.
    ValueError
        If an image is unreadable, `y` or `names` differs from `X` in length, a score is not
        finite, or `det` has no threshold. `write_report` then writes no file.

    See Also
    --------
    skanomaly_vit.TransformalyDetector : A detector with anomaly maps.
    skanomaly_vit.evaluation.evaluate : Computes the metrics alone.

    Notes
    -----
    All images pass through the detector once; large images pass once more, for their maps. An
    image of a solar cell takes 3 kB of the file; a large one with its map takes 20 kB more.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.report import write_report
    >>> normal = np.random.default_rng(0).integers(100, 156, (12, 32, 32, 3), dtype=np.uint8)
    >>> det = TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(normal)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(det, normal, path=f"{folder}/report.html", n_maps=0).name
    'report.html'
    """
    require_packages()
    target = check_target(path, "report.html")
    check_detector(det)
    if not isinstance(n_maps, Integral) or isinstance(n_maps, bool) or n_maps < 0:
        raise ValueError(f"n_maps={n_maps!r} is not an integer of at least 0")
    source = open_images(X, **reading_options(det))
    is_anomaly, labels = _read_labels(y, anomaly_label, len(source))
    shown_names, folder = _name_images(names, source)
    n_shown = min(int(n_maps), len(source))
    steps = _Steps(2 * len(source) + 2 * n_shown, callback)
    # Before scoring, as it finds unreadable images.
    thumbnails = _make_thumbnails(source, getattr(det, "n_jobs", None), steps)
    scores, offset = score(det, X, len(source), steps.advance)
    decision = scores - offset
    rows = _make_rows(shown_names, scores, decision, labels, thumbnails)
    uncertain = np.argsort(np.abs(decision), kind="stable")
    shown = [*list(rows)[:n_shown], *uncertain[:n_shown].tolist()]
    cards, scale = _draw_cards(det, X, source, shown, rows, steps)
    page = Page(
        title=printable("Anomaly report" if title is None else str(title)),
        created=datetime.now().astimezone(),
        statistics=summarize(scores, offset, is_anomaly),
        guarantees=certify(det),
        notes=remark(det, is_anomaly),
        histograms=_draw_histograms(ScoreDisplay(scores, offset=offset, is_anomaly=is_anomaly)),
        histogram_text=_describe_histogram(scores, offset),
        most_abnormal=cards[:n_shown],
        least_certain=cards[n_shown:],
        scale=scale,
        colorbar=None if scale is None else colorbar(),
        rows=list(rows.values()),
        labels=sorted(set(labels) - {""}),
        labels_of_anomalies=_distinct(labels, is_anomaly),
        offset=offset,
        detector=type(det).__name__,
        folder=folder,
        parameters=parameters_of(det),
        versions=versions(),
        fingerprint=find_attribute(det, "backbone_fingerprint_"),
    )
    write_atomically(render(page), target)
    return target


class _Steps:
    """Reports progress to a callback."""

    def __init__(self, total: int, callback: Callable[[int, int], object] | None) -> None:
        self._done, self._total, self._callback = 0, total, callback

    def advance(self, n: int = 1) -> None:
        self._done += n
        if self._callback is not None:
            self._callback(self._done, self._total)


# Arguments


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


def _distinct(labels: list[str], is_anomaly: Array | None) -> list[str]:
    """Distinct labels of the anomalies."""
    if is_anomaly is None:
        return []
    return sorted({label for label, anomalous in zip(labels, is_anomaly, strict=True) if anomalous})


def _name_images(names: Any, source: ImageSource) -> tuple[list[str], str]:
    """Shown name of each image, and the common folder of all images."""
    if names is not None:
        given = names.tolist() if hasattr(names, "tolist") else list(names)
        if isinstance(names, str) or len(given) != len(source):
            found = f"is the text {names!r}" if isinstance(names, str) else f"holds {len(given)}"
            raise ValueError(f"names {found}, X holds {len(source)} images; pass one for each")
        return [printable(_as_text(name)) for name in given], ""
    paths = [source.path(i) for i in range(len(source))]
    folder = _common_folder([path for path in paths if path is not None])
    shown = [
        f"image {i}" if path is None else os.path.relpath(path, folder) if folder else path
        for i, path in enumerate(paths)
    ]
    return [printable(name) for name in shown], printable(folder)


def _as_text(name: Any) -> str:
    return os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)


def _common_folder(paths: Sequence[str]) -> str:
    """Common folder of all paths; empty if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no paths, relative ones among absolute ones, or several drives
        return ""


def _make_rows(
    names: list[str], scores: Array, decision: Array, labels: list[str], thumbnails: list[Picture]
) -> dict[int, ImageRow]:
    """Row of each image, under its index in `X`, the most abnormal image first."""
    return {
        int(i): ImageRow(
            rank=rank,
            name=names[i],
            score=float(scores[i]),
            decision=float(decision[i]),
            is_flagged=bool(decision[i] < 0),
            label=labels[i],
            thumbnail=thumbnails[i],
        )
        for rank, i in enumerate(np.argsort(scores, kind="stable"), 1)
    }


# Pictures


def _make_thumbnails(source: ImageSource, n_jobs: int | None, steps: _Steps) -> list[Picture]:
    def make(position: int) -> Picture:
        return encode(shrink(source[position], _THUMBNAIL))

    parallel = joblib.Parallel(n_jobs, prefer="threads", return_as="generator")
    made = []
    for thumbnail in parallel(joblib.delayed(make)(i) for i in range(len(source))):
        made.append(thumbnail)
        steps.advance()
    return made


def _draw_cards(
    det: Any,
    X: Any,
    source: ImageSource,
    shown: list[int],
    rows: dict[int, ImageRow],
    steps: _Steps,
) -> tuple[list[Card], Scale | None]:
    """Large images, and the color scale of their maps."""
    images, maps, highest = {}, {}, {}
    for i in shown:
        if i not in images:
            pixels = source[i]
            images[i] = shrink(pixels, _LARGE)
            if has_maps(det):
                full = _map_of(det, X, i, pixels.shape[:2])
                # One small map at a time: maps of large images would fill the memory.
                maps[i], highest[i] = shrink_map(full, _LARGE), float(full.max())
        steps.advance()
    scale = Scale.of(list(maps.values())) if maps else None
    pictures = {i: encode(image) for i, image in images.items()}
    overlays = {i: encode(overlay(images[i], maps[i], scale)) for i in maps if scale}
    return [Card(rows[i], pictures[i], overlays.get(i), highest.get(i)) for i in shown], scale


def _map_of(det: Any, X: Any, i: int, shape: tuple[int, ...]) -> Array:
    values = np.asarray(det.anomaly_map(_safe_indexing(X, [i]))[0])
    if values.shape != shape or not np.isfinite(values).all():
        problem = "values that are not finite" if values.shape == shape else "another size"
        raise ValueError(
            f"{type(det).__name__}.anomaly_map gave a map of shape {values.shape} for sample {i} "
            f"of shape {shape}: {problem}"
        )
    return values


def _draw_histograms(display: ScoreDisplay) -> dict[tuple[str, str], str]:
    return {
        (width, theme): _draw_histogram(display, inches, ink, ground)
        for width, inches in _HISTOGRAMS.items()
        for theme, (ink, ground) in _THEMES.items()
    }


def _draw_histogram(
    display: ScoreDisplay, inches: tuple[float, float], ink: str, ground: str
) -> str:
    """Draw the scores as an SVG in a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text; the same scores give the same file.
    settings: Any = {"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "histogram"}
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    settings |= dict.fromkeys(_INKED, ink)
    settings |= dict.fromkeys(("axes.facecolor", "figure.facecolor", "legend.edgecolor"), ground)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        display.plot(figure.add_subplot(), bins=_BINS, stat="count")
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return data_uri("svg+xml", stream.getvalue())


def _describe_histogram(scores: Array, offset: float) -> str:
    n_flagged = int((scores < offset).sum())
    return (
        f"Histogram of the scores of {len(scores)} images, from {scores.min():.4g} to "
        f"{scores.max():.4g}. {n_flagged} lie below the threshold of {offset:.4g}."
    )
