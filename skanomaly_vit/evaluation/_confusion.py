"""Pre-training confusion: classes that a pre-trained feature space mixes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils import Bunch, check_array

from skanomaly_vit._images.units import number_rows
from skanomaly_vit._utils.labels import as_labels, as_objects, sorted_classes
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.density import GaussianDensity
from skanomaly_vit.exceptions import ConfusionWarning


def pretraining_confusion(
    features: Any,
    labels: Any,
    *,
    density: Any = None,
    n_splits: int = 5,
    threshold: float = 0.9,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Measure which classes a feature space mixes.

    If a backbone sees two classes alike, no detector on top can find one as an anomaly among
    images of the other: *pre-training confusion*, [1]_ section 5.

    Parameters
    ----------
    features : array-like of shape (n_images, n_features)
        Features of images, such as those of `ViTFeatures`.
    labels : array-like of shape (n_images,)
        Class of each image.
    density : estimator or None, default=None
        The density scorer, cloned for each class and fold. ``None`` is `GaussianDensity`.
    n_splits : int, default=5
        Folds of each class: a density fits all but one, and scores that one and the other classes.
        Each class needs at least `n_splits` images that differ, and at least three. Copies of an
        image, which have equal features, stay in one fold.
    threshold : float, default=0.9
        AUROC under which two classes count as confused.
    random_state : int, RandomState instance or None, default=0
        Source of the folds.

    Returns
    -------
    confusion : Bunch
        ``classes``, ndarray of the labels, sorted; ``auroc``, ndarray of shape (n_classes,
        n_classes), float64: how well a density of the row's class separates images of the column's
        class from new ones of its own, 0.5 at chance, nan on the diagonal; ``missed``, list of
        (class, other class, AUROC): classes that a detector would miss as anomalies if the other
        one is normal, the worst first.

    Raises
    ------
    ValueError
        If `features` are not numbers (but images, say), or there are fewer than two classes, or
        fewer images of one than `n_splits`.

    Warns
    -----
    ConfusionWarning
        If a detector would miss a class.

    See Also
    --------
    one_vs_rest : The detector itself, class by class.

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.evaluation import pretraining_confusion
    >>> Z = np.random.RandomState(0).normal(size=(120, 2)) + np.repeat([0, 9, 18], 40)[:, None]
    >>> pretraining_confusion(Z, np.repeat(["bolt", "nut", "screw"], 40)).auroc
    array([[nan,  1.,  1.],
           [ 1., nan,  1.],
           [ 1.,  1., nan]])
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r} is no AUROC; pass one in [0, 1]")
    Z = _as_features(features)
    found = as_labels(labels, "labels")
    if len(found) != len(Z):
        raise ValueError(f"features has {len(Z)} rows and labels {len(found)}; pass one a row")
    classes = sorted_classes(found)
    by_class = {name: Z[[label == name for label in found]] for name in classes}
    _check_classes(by_class, n_splits)
    scorer = GaussianDensity() if density is None else density
    auroc = np.array(
        [_tell_from(by_class, name, scorer, (n_splits, random_state)) for name in classes]
    )
    missed = _missed(classes, auroc, threshold)
    if missed:
        _warn(missed, threshold)
    return Bunch(classes=as_objects(classes), auroc=auroc, missed=missed)


def _as_features(features: Any) -> np.ndarray:
    try:
        return check_array(features, dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"features is no array of numbers of shape (n_images, n_features): {error} For images, "
            "pass ViTFeatures().fit_transform(images)"
        ) from error


def _check_classes(by_class: dict[Any, np.ndarray], n_splits: int) -> None:
    if len(by_class) < 2:
        raise ValueError(f"labels hold the class {[*by_class]} only; pass at least two classes")
    for name, rows in by_class.items():
        n_distinct = len(np.unique(number_rows(rows)))
        if n_distinct < max(n_splits, 3):
            raise ValueError(
                f"class {name!r} has {n_distinct} images that differ; n_splits={n_splits} needs at "
                f"least {max(n_splits, 3)} of each class"
            )


def _tell_from(
    by_class: dict[Any, np.ndarray], normal: Any, density: Any, folds: tuple[int, Any]
) -> list[float]:
    """AUROC of each class against held-out images of `normal`, the mean over the folds."""
    of_folds = []
    for train, test in _folds(by_class[normal], *folds):
        fitted = clone(density).fit(by_class[normal][train])
        scores = {name: -fitted.score_samples(rows) for name, rows in by_class.items()}
        own = scores[normal][test]
        of_folds.append(
            [np.nan if name == normal else _auroc(own, scores[name]) for name in by_class]
        )
    return [float(value) for value in np.mean(of_folds, axis=0)]


def _folds(
    rows: np.ndarray, n_splits: int, random_state: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds of the images of a class, which keep copies together."""
    copies = number_rows(rows)
    if len(np.unique(copies)) == len(rows):
        return KFold(n_splits, shuffle=True, random_state=random_state).split(rows)
    folds = GroupKFold(n_splits, shuffle=True, random_state=random_state)
    return folds.split(rows, groups=copies)


def _auroc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    is_abnormal = np.repeat([0, 1], [len(normal), len(abnormal)])
    return float(roc_auc_score(is_abnormal, np.concatenate([normal, abnormal])))


def _missed(
    classes: list[Any], auroc: np.ndarray, threshold: float
) -> list[tuple[Any, Any, float]]:
    """Each class beside the one that hides it best."""
    hiding = np.nanargmin(auroc, axis=0)
    worst = [
        (name, classes[row], float(auroc[row, column]))
        for column, (name, row) in enumerate(zip(classes, hiding, strict=True))
    ]
    return sorted((entry for entry in worst if entry[2] < threshold), key=lambda entry: entry[2])


def _warn(missed: list[tuple[Any, Any, float]], threshold: float) -> None:
    shown = ", ".join(
        f"{name!r} among {other!r} (AUROC {value:.2f})" for name, other, value in missed
    )
    warn_user(
        f"The features mix classes; a detector would miss these as anomalies: {shown}. Their AUROC "
        f"is below threshold={threshold}. Another backbone may tell them apart.",
        ConfusionWarning,
    )
