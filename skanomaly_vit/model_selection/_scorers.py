"""Scorers for a search: AUROC and the like, whose sign you cannot get wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import check_random_state

from skanomaly_vit._images.opening import open_images, reading_options
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.composition import find_attribute
from skanomaly_vit._utils.detectors import METRICS, known_metric, normality
from skanomaly_vit._utils.labels import AUTO, as_labels, show_labels, which_are_anomalies
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.model_selection._pseudo_anomalies import ALTERATIONS

_CHUNK = 64  # pseudo-anomalies in memory at a time


def anomaly_scorer(metric: str = "roc_auc", *, anomaly_label: Any = AUTO) -> Scorer:
    """Scorer of outlier detectors whose sign you cannot get wrong.

    Anomalies are the positive class, whatever their label. The abnormality of a sample is the
    negative score of the detector.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "fpr95"}, default="roc_auc"
        ``"fpr95"`` is the share of normal samples flagged at 95 % of the anomalies found, with a
        minus sign: for all metrics, greater is better.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `y`; all other labels are normal. ``"auto"`` takes +1 for normal
        and -1 for an anomaly, and raises for other labels, which could mean either.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y)`` gives a float; pass it as ``scoring``. It calls
        ``score_samples`` of the estimator or else ``decision_function`` of an outlier detector.

    Raises
    ------
    ValueError
        If the metric is unknown. The scorer itself raises it if `y` has only one kind of samples,
        or ambiguous labels; a search turns that into a warning and a score of NaN, unless
        ``error_score="raise"``.

    Warns
    -----
    UndefinedMetricWarning
        If all samples are normal and as many as the estimator was fitted on: a search that scores
        training folds (``return_train_score=True``, ``HalvingGridSearchCV``) gets NaN for those.

    See Also
    --------
    NormalOnlyKFold : Folds that test both kinds of samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import GaussianDensity
    >>> from skanomaly_vit.model_selection import anomaly_scorer
    >>> X = np.random.RandomState(0).normal(size=(50, 2))
    >>> density = GaussianDensity().fit(X)
    >>> X_test, y_test = [[0, 0], [1, 0], [0, 9]], ["good", "good", "crack"]
    >>> anomaly_scorer(anomaly_label="crack")(density, X_test, y_test)
    1.0
    """
    return _AnomalyScorer(known_metric(metric), anomaly_label)


def pseudo_anomaly_scorer(
    metric: str = "roc_auc",
    *,
    kinds: Sequence[str] = ("patch_shuffle", "cut_paste", "rotation"),
    n_patches: int = 4,
    random_state: int | np.random.RandomState | None = 0,
    anomaly_label: Any = AUTO,
) -> Scorer:
    """Scorer that needs no labelled anomaly: it makes some from the normal images.

    It measures how well a detector separates the normal images of a test fold from altered copies
    of the same images.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "fpr95"}, default="roc_auc"
        As in `anomaly_scorer`. The score is its mean over `kinds`.
    kinds : sequence of str, default=("patch_shuffle", "cut_paste", "rotation")
        Alterations. ``"patch_shuffle"``: cut into `n_patches` x `n_patches` patches that change
        places. ``"cut_paste"``: a rectangle of the image, a little lighter or darker, pasted
        elsewhere [1]_. ``"rotation"``: by 90, 180 or 270 degrees; by 180 if the image is not
        square. Leave out a kind that is normal: solar cells may lie either way.
    n_patches : int, default=4
        Patches in a row and in a column, at least 2.
    random_state : int, RandomState instance or None, default=0
        Source of the alterations. `pseudo_anomaly_scorer` draws from it once, so all estimators
        that a scorer scores on the same images meet the same pseudo-anomalies.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `y`, if there are any; the scorer ignores them.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)`` gives a float; pass it as ``scoring``. `X` holds images of
        any form that the detector takes. The scorer scores each normal image once, and once more
        for each of `kinds`.

    Raises
    ------
    ValueError
        If a parameter is not as described. The scorer itself raises it if no sample is normal
        or an image is too small to be altered.

    See Also
    --------
    anomaly_scorer : Scores with labelled anomalies: trust these more.

    References
    ----------
    .. [1] C.-L. Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and
       Localization", CVPR 2021, arXiv:2104.04015.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV, KFold
    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.model_selection import pseudo_anomaly_scorer
    >>> search = GridSearchCV(
    ...     TransformalyDetector(),
    ...     {"n_blocks": [1, 5, 10]},
    ...     scoring=pseudo_anomaly_scorer(kinds=["patch_shuffle", "cut_paste"]),
    ...     cv=KFold(3, shuffle=True, random_state=0),
    ... )  # search.fit(normal_images)
    """
    unknown = [kind for kind in kinds if kind not in ALTERATIONS]
    if isinstance(kinds, str) or unknown or len(kinds) == 0:
        raise ValueError(f"kinds={kinds!r} is not a sequence of some of {list(ALTERATIONS)}")
    if not isinstance(n_patches, Integral) or n_patches < 2:
        raise ValueError(f"n_patches={n_patches!r} is not an integer of at least 2")
    if not isinstance(random_state, Integral):
        random_state = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    if random_state < 0:
        raise ValueError(f"random_state={random_state} is negative")
    return _PseudoAnomalyScorer(
        known_metric(metric), tuple(kinds), int(n_patches), int(random_state), anomaly_label
    )


Scorer: TypeAlias = Callable[..., float]


@dataclass(frozen=True)
class _AnomalyScorer:
    metric: str
    anomaly_label: Any

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        is_anomaly = which_are_anomalies(y, self.anomaly_label)
        n_anomalies = int(is_anomaly.sum())
        if n_anomalies == 0 and _is_training_fold(estimator, len(is_anomaly)):
            warn_user(
                f"{self.metric} is not defined on a training fold of normal samples only; it is "
                "NaN there. Test folds have to hold both kinds: pass cv=NormalOnlyKFold()",
                UndefinedMetricWarning,
            )
            return float("nan")
        if n_anomalies in (0, len(is_anomaly)):
            raise ValueError(
                f"{self.metric} is not defined: of the {len(is_anomaly)} samples to test, "
                f"{n_anomalies} are anomalies (labels {show_labels(as_labels(y))}, "
                f"anomaly_label={self.anomaly_label!r}). Pass cv=NormalOnlyKFold(), which tests "
                "both kinds in each fold, and check anomaly_label"
            )
        return float(METRICS[self.metric](is_anomaly, -normality(estimator, X)))

    def __repr__(self) -> str:
        return f"anomaly_scorer({self.metric!r}, anomaly_label={self.anomaly_label!r})"


def _is_training_fold(estimator: Any, n_samples: int) -> bool:
    """Whether samples to score are those of the fit, as far as their number says.

    Searches that score the training folds too do not tell a scorer which fold it gets.
    """
    counts = [find_attribute(estimator, name) for name in ("n_samples_fit_", "n_samples_seen_")]
    shape = find_attribute(estimator, "shape_fit_")  # of support vector machines
    return any(np.array_equal(count, n_samples) for count in [*counts, shape and shape[0]])


@dataclass(frozen=True)
class _PseudoAnomalyScorer:
    metric: str
    kinds: tuple[str, ...]
    n_patches: int
    seed: int
    anomaly_label: Any

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        source = open_images(X, **reading_options(estimator))
        normal = np.arange(len(source))
        if y is not None:
            normal = np.flatnonzero(~which_are_anomalies(y, self.anomaly_label))
        if len(normal) == 0:
            raise ValueError(
                f"y holds the labels {show_labels(as_labels(y))} and anomaly_label="
                f"{self.anomaly_label!r}: no sample is normal, so there are no pseudo-anomalies"
            )
        scores = normality(estimator, X)[normal]
        return float(
            np.mean([self._measure(estimator, source, normal, scores, kind) for kind in self.kinds])
        )

    def _measure(
        self,
        estimator: Any,
        source: ImageSource,
        normal: np.ndarray,
        scores: np.ndarray,
        kind: str,
    ) -> float:
        image_shape = reading_options(estimator)["image_shape"]
        altered = []
        for start in range(0, len(normal), _CHUNK):
            images = [self._alter(source, i, kind) for i in normal[start : start + _CHUNK]]
            altered.append(normality(estimator, _as_input(images, image_shape)))
        is_anomaly = np.repeat([False, True], len(normal))
        return METRICS[self.metric](is_anomaly, -np.concatenate([scores, *altered]))

    def _alter(self, source: ImageSource, index: int, kind: str) -> np.ndarray:
        # A generator for each image: neither other images nor other kinds change the draw.
        rng = np.random.default_rng([self.seed, index])
        image = source[index]  # (h, w, 3)
        if min(image.shape[:2]) < self.n_patches:
            raise ValueError(
                f"sample {index} has {image.shape[0]} x {image.shape[1]} pixels, too few for "
                f"n_patches={self.n_patches}; pass fewer patches or larger images"
            )
        return ALTERATIONS[kind](image, rng, self.n_patches)

    def __repr__(self) -> str:
        return (
            f"pseudo_anomaly_scorer({self.metric!r}, kinds={self.kinds!r}, "
            f"n_patches={self.n_patches}, random_state={self.seed}, "
            f"anomaly_label={self.anomaly_label!r})"
        )


def _as_input(images: list[np.ndarray], image_shape: tuple[int, int, int] | None) -> Any:
    """Images -> an array if they are alike, rows if the estimator takes rows, else a list."""
    if len({(image.shape, image.dtype) for image in images}) > 1:
        return images
    stacked = np.stack(images)  # (n, h, w, 3)
    if image_shape is None:
        return stacked
    return stacked[..., : image_shape[2]].reshape(len(images), -1)
