"""Evaluation of a detector on labelled images: once, or class by class."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import Bunch

from skanomaly_vit._images.digests import digest_image
from skanomaly_vit._images.opening import open_images, reading_options
from skanomaly_vit._utils.compat import _safe_indexing
from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit._utils.detectors import fpr_at_95_tpr, normality, require_normality
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.labels import (
    AUTO,
    absent_labels,
    as_labels,
    as_objects,
    show_labels,
    sorted_classes,
    which_are_anomalies,
)
from skanomaly_vit.exceptions import CalibrationWarning, UnreadableImageError

# torch is imported where it is needed: evaluations of fitted detectors can do without.
if TYPE_CHECKING:
    import torch

SETTINGS = ("unimodal", "multimodal")

_BOOKKEEPING = ("memory", "n_jobs", "verbose")

_COLUMNS = (
    "n_train",
    "n_normal",
    "n_anomalies",
    "auroc",
    "average_precision",
    "fpr95",
    "fit_seconds",
    "score_seconds",
)


def evaluate(
    estimator: Any, images: Any, test_images: Any, test_y: Any, *, anomaly_label: Any = AUTO
) -> dict[str, float]:
    """Fit a detector on normal images and measure it on images of both kinds.

    Parameters
    ----------
    estimator : estimator
        An outlier detector, or a pipeline that ends in one: with ``fit`` and ``score_samples``
        (higher = more normal). A clone is fitted.
    images : images
        Normal images to fit on, of any form that `estimator` takes.
    test_images : images
        Images to measure on, normal ones and anomalies.
    test_y : array-like of shape (n_test_images,)
        Label of each of `test_images`.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `test_y`; ``"auto"`` is -1 among +1 and -1.

    Returns
    -------
    measured : dict of str to float
        ``n_train``, ``n_normal``, ``n_anomalies`` (images); ``auroc``, the area under the ROC
        curve; ``average_precision``, with anomalies as the positive class; ``fpr95``, the share of
        normal images flagged where the threshold flags 95 % of the anomalies; ``fit_seconds``
        and ``score_seconds``.

    Raises
    ------
    ValueError
        If `estimator` gives no score, or `test_y` has another length than `test_images`, or
        anomalies or normal images only, or lacks a label of `anomaly_label`.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianDensity
    >>> from skanomaly_vit.evaluation import evaluate
    >>> X = np.random.RandomState(0).normal(size=(60, 2))  # features do as well as images
    >>> X[50:] += 9
    >>> evaluate(GaussianDensity(), X[:40], X[40:], np.repeat([1, -1], 10))["auroc"]
    1.0
    """
    require_normality(estimator)
    is_anomaly = which_are_anomalies(test_y, anomaly_label)
    labels = as_labels(test_y)
    absent = absent_labels(labels, anomaly_label)
    if absent:
        raise ValueError(
            f"anomaly_label={anomaly_label!r}: {show_labels(absent)} is not among the labels of "
            f"test_y, {show_labels(labels)}"
        )
    _check_length("test_images", test_images, "test_y", is_anomaly)
    if is_anomaly.all() or not is_anomaly.any():
        kind = "anomalies" if is_anomaly.all() else "normal images"
        raise ValueError(f"test_y has {kind} only; pass test images of both kinds")
    return _measure(estimator, images, test_images, is_anomaly)


def one_vs_rest(
    estimator: Any,
    images: Any,
    labels: Any,
    *,
    setting: str = "unimodal",
    test_images: Any,
    test_labels: Any,
    classes: Iterable[Any] | None = None,
    n_jobs: int | None = None,
    memory: Any = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> Any:
    """Measure a detector with each class in turn as the normal one, or as the anomaly.

    Parameters
    ----------
    estimator : estimator
        An outlier detector, or a pipeline that ends in one: with ``fit`` and ``score_samples``
        (higher = more normal). A clone is fitted for each class.
    images : images
        Images of all classes to fit on, of any form that `estimator` takes. Each fit sees the
        normal ones only. None of them should be among `test_images`.
    labels : array-like of shape (n_images,)
        Class of each image.
    setting : {"unimodal", "multimodal"}, default="unimodal"
        ``"unimodal"``: one class is normal and all others are anomalies. ``"multimodal"``: one
        class is the anomaly and all others are normal.
    test_images : images
        Images to measure on. Each turn scores all of them.
    test_labels : array-like of shape (n_test_images,)
        Class of each of `test_images`.
    classes : iterable of labels or None, default=None
        The classes that take their turn. ``None`` is all classes of `labels`, sorted.
    n_jobs : int or None, default=None
        Classes evaluated at a time. ``None`` is one, ``-1`` is one per core.
    memory : str, path-like, DiskCache, object with ``cache`` or None, default=None
        Store of the figures of each class, from which an interrupted evaluation resumes. Their
        keys are the contents of the images, the parameters of `estimator`, the contents of a
        checkpoint that it names, versions and the type of processor. If its ``random_state`` is no
        int, the figures stay those of the first run. The code of an estimator is no part of the
        keys: take another folder when yours has changed.
    callback : callable or None, default=None
        Called with each row of the table, a dict, as soon as it and all rows before it are done.

    Returns
    -------
    table : pandas.DataFrame or Bunch
        A row per class, in the order of `classes`, and a row ``"mean"`` of their means. The
        columns are the figures of `evaluate`, as fractions and in seconds. Without pandas, a
        `sklearn.utils.Bunch` of arrays: ``index`` and the columns.

    Raises
    ------
    ValueError
        If `estimator` gives no score, lengths differ, a class is unknown or there twice, or a
        turn would lack normal images or anomalies.

    See Also
    --------
    evaluate : One turn.
    pretraining_confusion : Finds classes that no density can tell apart.

    Notes
    -----
    Seconds are those of the run that computed a row. If `estimator` has a ``memory``, they omit
    the work that it found there, in the first turn less than in the others: compare speeds without
    one. The unimodal and the multimodal setting are those of [1]_, section 4.

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.density import GaussianDensity
    >>> from skanomaly_vit.evaluation import one_vs_rest
    >>> labels = np.repeat(["bolt", "nut", "screw"], 40)
    >>> X, X_test = np.random.RandomState(0).normal(size=(2, 120, 2))
    >>> for features in (X, X_test):
    ...     features += np.repeat([0, 9, 9], 40)[:, None]
    >>> table = one_vs_rest(GaussianDensity(), X, labels, test_images=X_test, test_labels=labels)
    >>> table["auroc"].round(2).to_dict()
    {'bolt': 1.0, 'nut': 0.74, 'screw': 0.76, 'mean': 0.83}
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting!r} is not one of {SETTINGS}")
    require_normality(estimator)
    train_classes = _classes_of(images, labels, "images", "labels")
    test_classes = _classes_of(test_images, test_labels, "test_images", "test_labels")
    turns = _choose(classes, train_classes)
    masks = [_turn(name, setting, train_classes, test_classes) for name in turns]
    key_of = _Keys(estimator, images, test_images) if memory is not None else None
    jobs = (
        joblib.delayed(_take_turn)(
            f"{name!r} ({setting})",
            estimator,
            _safe_indexing(images, np.flatnonzero(is_normal)),
            np.flatnonzero(is_normal),
            test_images,
            is_anomaly,
            memory,
            *(key_of(is_normal, is_anomaly) if key_of else (b"", b"")),
        )
        for name, (is_normal, is_anomaly) in zip(turns, masks, strict=True)
    )
    rows = []
    for name, row in zip(turns, joblib.Parallel(n_jobs, return_as="generator")(jobs), strict=True):
        rows.append({"class": name, **row})
        if callback is not None:
            callback(rows[-1])
    return _as_table(rows)


def _measure(
    estimator: Any,
    images: Any,
    test_images: Any,
    is_anomaly: np.ndarray,
    positions: np.ndarray | None = None,
) -> dict[str, float]:
    """Figures of one turn; `positions` are the indices of the images among those of all classes."""
    start = time.perf_counter()
    fitted = _fit(estimator, images, positions)
    fitted_at = time.perf_counter()
    abnormality = -normality(fitted, test_images)
    scored_at = time.perf_counter()
    _check_scores(abnormality, len(is_anomaly), fitted)
    values = (
        _length(images),
        (~is_anomaly).sum(),
        is_anomaly.sum(),
        roc_auc_score(is_anomaly, abnormality),
        average_precision_score(is_anomaly, abnormality),
        fpr_at_95_tpr(is_anomaly, abnormality),
        fitted_at - start,
        scored_at - fitted_at,
    )
    return dict(zip(_COLUMNS, map(float, values), strict=True))


def _fit(estimator: Any, images: Any, positions: np.ndarray | None) -> Any:
    with warnings.catch_warnings():
        # The warning is about the threshold, and no figure depends on it.
        warnings.simplefilter("ignore", CalibrationWarning)
        try:
            return clone(estimator).fit(images)
        except UnreadableImageError as error:
            if positions is not None:
                found = ", ".join(str(positions[image.index]) for image in error.images)
                error.add_note(f"Among the images of all classes: sample {found}.")
            raise


def _check_scores(abnormality: np.ndarray, n_images: int, fitted: Any) -> None:
    if abnormality.shape != (n_images,):
        raise ValueError(
            f"{type(fitted).__name__} gave scores of shape {abnormality.shape} for {n_images} test "
            "images; a detector gives one score an image"
        )
    wrong = np.flatnonzero(~np.isfinite(abnormality))
    if len(wrong):
        raise ValueError(
            f"{type(fitted).__name__} gave {len(wrong)} of {len(abnormality)} test images scores "
            f"that are not finite, first test image {wrong[0]}: {-abnormality[wrong[0]]}"
        )


def _take_turn(
    name: str,
    estimator: Any,
    images: Any,
    positions: np.ndarray,
    test_images: Any,
    is_anomaly: np.ndarray,
    memory: Any,
    key: bytes,
    contents: bytes,
) -> dict[str, float]:
    import torch

    from skanomaly_vit._caching.memory import Memory

    def compute(_: list[str]) -> dict[str, dict[str, torch.Tensor]]:
        measured = _measure(estimator, images, test_images, is_anomaly, positions)
        return {"row": {k: torch.tensor(v, dtype=torch.float64) for k, v in measured.items()}}

    def is_final() -> bool:
        """Whether the images are those of the key: what was measured of others is not kept."""
        options = reading_options(estimator)
        now = combine(*_digests(images, options), *_digests(test_images, options))
        return now == contents

    try:
        row = Memory(memory).recall({"row": key}, compute, is_final) if key else compute([])
    except Exception as error:
        error.add_note(f"This happened in the turn of class {name}.")
        raise
    return {column: row["row"][column].item() for column in _COLUMNS}


class _Keys:
    """Keys of turns: digests of everything that their figures depend on."""

    def __init__(self, estimator: Any, images: Any, test_images: Any) -> None:
        from skanomaly_vit._caching.memory import surroundings

        self._context = combine(
            "turn",
            *surroundings(_device_of(estimator)),
            version("scikit-learn"),
            joblib.hash(_without_bookkeeping(estimator)),
            *_digest_checkpoints(estimator),
        )
        options = reading_options(estimator)
        self._train, self._test = _digests(images, options), _digests(test_images, options)

    def __call__(self, is_normal: np.ndarray, is_anomaly: np.ndarray) -> tuple[bytes, bytes]:
        """Key of a turn, and digest of the images that it is about."""
        normal = [digest for digest, mask in zip(self._train, is_normal, strict=True) if mask]
        key = combine(self._context, *normal, "tested on", *self._test, is_anomaly.tobytes())
        return key, combine(*normal, *self._test)


def _device_of(estimator: Any) -> torch.device:
    """Device of the network, if there is one: `device` of other estimators may mean anything."""
    has_network = find_attribute(estimator, "backbone") is not None
    from skanomaly_vit._backbone.devices import resolve_device

    return resolve_device(find_attribute(estimator, "device") if has_network else "cpu")


def _without_bookkeeping(estimator: Any) -> Any:
    """Clone an estimator without the parameters that no figure depends on."""
    copy = clone(estimator)
    names = [name for name in copy.get_params() if name.rpartition("__")[2] in _BOOKKEEPING]
    return copy.set_params(**dict.fromkeys(names))


def _digest_checkpoints(estimator: Any) -> list[bytes]:
    """Digests of weights in files, whose paths say nothing about their content."""
    parameters = sorted(estimator.get_params().items())
    values = [value for name, value in parameters if name.rpartition("__")[2] == "pretrained"]
    paths = [os.fspath(value) for value in values if isinstance(value, str | os.PathLike)]
    return [digest_image(path) for path in paths if os.path.isfile(path)]


def _digests(X: Any, options: dict[str, Any]) -> list[bytes]:
    rows = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind in "biuf":
        return [combine(rows.dtype.str, row.tobytes()) for row in rows]
    source = open_images(X, **options)
    return [source.digest(position) for position in range(len(source))]


def _length(X: Any) -> int:
    return int(X.shape[0]) if hasattr(X, "shape") else len(X)


def _check_length(name: str, X: Any, labels_name: str, labels: Any) -> None:
    if not hasattr(X, "__len__") and not hasattr(X, "shape"):
        raise ValueError(f"{name} is of type {type(X).__name__}; pass a list or an array of images")
    if _length(X) != len(labels):
        raise ValueError(
            f"{name} holds {_length(X)} images and {labels_name} {len(labels)} labels; "
            "pass a label for each image"
        )


def _classes_of(X: Any, labels: Any, name: str, labels_name: str) -> np.ndarray:
    values = as_labels(labels, labels_name)
    _check_length(name, X, labels_name, values)
    return as_objects(values)


def _choose(wanted: Iterable[Any] | None, train_classes: np.ndarray) -> list[Any]:
    known = sorted_classes(train_classes)
    if wanted is None:
        return known
    if isinstance(wanted, str | bytes) or not isinstance(wanted, Iterable):
        raise ValueError(f"classes={wanted!r} is one label; pass a list of them")
    chosen = list(wanted)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes={chosen!r} names a class twice")
    unknown = [label for label in chosen if label not in known]
    if unknown or not chosen:
        raise ValueError(
            f"classes={chosen!r}: {show_labels(unknown) if unknown else 'nothing'} is not among "
            f"the labels of images, {show_labels(known)}"
        )
    return chosen


def _turn(
    name: Any, setting: str, train_classes: np.ndarray, test_classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mask of the images to fit on, and of the anomalies among the test images."""
    is_normal = np.array([label == name for label in train_classes])
    of_normal_class = np.array([label == name for label in test_classes])
    if setting == "multimodal":
        is_normal, of_normal_class = ~is_normal, ~of_normal_class
    lacking = {
        "normal images to fit on": is_normal,
        "normal test images": of_normal_class,
        "anomalies among the test images": ~of_normal_class,
    }
    for what, mask in lacking.items():
        if not mask.any():
            raise ValueError(f"the turn of class {name!r} in the {setting} setting has no {what}")
    return is_normal, ~of_normal_class


def _as_table(rows: list[dict[str, Any]]) -> Any:
    index = [*(row["class"] for row in rows), "mean"]
    values = np.array([[row[column] for column in _COLUMNS] for row in rows])
    columns = dict(zip(_COLUMNS, np.vstack([values, values.mean(axis=0)]).T, strict=True))
    try:
        import pandas
    except ImportError:
        return Bunch(index=as_objects(index), **columns)
    labels = pandas.Index(index, name="class", dtype=object, tupleize_cols=False)
    return pandas.DataFrame(columns, index=labels)
