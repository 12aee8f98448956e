"""Labels: masks of anomalies, and the warning of labels that `fit` ignores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from skanomaly_vit._utils.missing import is_missing
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import LabelWarning

NORMAL, ANOMALY = 1, -1  # what scikit-learn's outlier detectors predict

AUTO = "auto"

_SHOWN = 6  # labels that a message lists


def which_are_anomalies(y: Any, anomaly_label: Any = AUTO) -> np.ndarray:
    """Mask of the anomalies.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels of any kind.
    anomaly_label : label, list of labels or "auto"
        Label(s) of anomalies; all others are normal. "auto" is -1 among +1 and -1, and raises for
        other labels, which could mean either.

    Returns
    -------
    is_anomaly : ndarray of shape (n_samples,), bool

    Raises
    ------
    ValueError
        If a label is missing, or `y` is ambiguous.
    """
    labels = as_labels(y)
    if is_auto(anomaly_label):
        _check_signs(labels)
        return np.array([label == ANOMALY for label in labels], dtype=bool)
    # Compared as Python does: numpy would make strings of [3, "crack"].
    wanted = set(as_label_list(anomaly_label))
    return np.array([label in wanted for label in labels], dtype=bool)


def warn_about_labels(y: Any) -> None:
    """Warn if the labels passed to `fit` show anomalies among the samples.

    Parameters
    ----------
    y : array-like or None
        Labels that `fit` got and ignores. A single label is in order, unless it is -1.
    """
    if y is None:
        return
    labels = set(np.asarray(y, dtype=object).ravel().tolist())
    if len(labels) > 1:
        found = f"labels of several kinds, {show_labels(labels)}"
    elif any(label == ANOMALY and not _is_bool(label) for label in labels):
        found = f"the label {ANOMALY} only, which marks anomalies"
    else:
        return
    warn_user(
        f"fit got y with {found}. It ignores y and takes every sample for a normal one. "
        "Fit on normal samples only. To cross-validate or search, pass cv=NormalOnlyKFold() and "
        "scoring=anomaly_scorer() of skanomaly_vit.model_selection, and refit=False to a search, "
        "which otherwise fits on all samples in the end. If all are normal, leave y out.",
        LabelWarning,
    )


def as_labels(y: Any, name: str = "y", kind: str = "label") -> list[Any]:
    """Return labels as Python objects, or raise if one is missing; errors call them `name`."""
    if y is None:
        raise ValueError(f"{name} is None; pass a label for each sample")
    # As objects: numpy would make ["good", nan] strings, and [True, 2] integers.
    labels = np.asarray(y, dtype=object)
    if labels.ndim != 1:
        raise ValueError(
            f"{name} has shape {labels.shape}; pass one label a sample, shape (n_samples,)"
        )
    for index, label in enumerate(labels):
        if is_missing(label):
            raise ValueError(
                f"sample {index} has no {kind}: {name} holds {label!r} there. Give it one, or "
                "leave it out"
            )
    return labels.tolist()


def is_auto(value: Any) -> bool:
    """Tell whether a parameter is "auto"; an array compares with no string."""
    return isinstance(value, str) and value == AUTO


def as_label_list(anomaly_label: Any) -> list[Any]:
    """One label or several -> list of labels."""
    if isinstance(anomaly_label, Iterable) and not isinstance(anomaly_label, str | bytes):
        return list(anomaly_label)
    return [anomaly_label]


def absent_labels(labels: Iterable[Any], anomaly_label: Any) -> set[Any]:
    """Labels of anomalies that `labels` lacks: misspelt, as a rule."""
    return set() if is_auto(anomaly_label) else set(as_label_list(anomaly_label)) - set(labels)


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Array of objects, such as labels; numpy would make strings of some, rows of tuples."""
    return np.fromiter(values, dtype=object, count=len(values))


def sorted_classes(labels: Iterable[Any]) -> list[Any]:
    """Distinct labels in order, numbers before strings."""
    return sorted(set(labels), key=lambda label: (isinstance(label, str), label))


def show_labels(labels: Iterable[Any]) -> str:
    """Distinct labels as a message shows them, such as ``[-1, 1]``."""
    distinct = sorted(set(labels), key=lambda label: (isinstance(label, str), str(label)))
    shown = ", ".join(map(_plain_repr, distinct[:_SHOWN]))
    more = len(distinct) - _SHOWN
    return f"[{shown}{f', ... and {more} more' if more > 0 else ''}]"


def _check_signs(labels: list[Any]) -> None:
    distinct = set(labels)
    if distinct <= {NORMAL, ANOMALY} and not any(_is_bool(label) for label in distinct):
        return
    shown = show_labels(distinct)
    example = "anomaly_label=label, or a list of labels"
    if len(distinct) == 2:
        first, second = sorted(distinct, key=str)
        example = f"anomaly_label={_plain_repr(first)} or anomaly_label={_plain_repr(second)}"
    raise ValueError(
        f"y holds the labels {shown}. anomaly_label='auto' knows +1 (normal) and -1 (anomaly) "
        f"only. Pass the label of anomalies: {example}"
    )


def _plain_repr(label: Any) -> str:
    return repr(label.item() if isinstance(label, np.generic) else label)


def _is_bool(label: Any) -> bool:
    return isinstance(label, bool | np.bool_)
