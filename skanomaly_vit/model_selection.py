"""Choosing hyperparameters: folds and scorers for detectors that learn from normal samples only.

scikit-learn's own tools hold two traps for outlier detectors. The first: a detector scores high
what is normal, so with ``y = 1`` for anomalies ``scoring="roc_auc"`` gives 1 - AUROC, silently.
Ten samples far off all others are the worst found of all, it seems:

>>> import numpy as np
>>> from sklearn.covariance import EllipticEnvelope
>>> from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
>>> X = np.random.RandomState(0).normal(size=(50, 2))
>>> X[40:] += 9
>>> y = np.repeat([0, 1], [40, 10])
>>> envelope = EllipticEnvelope(random_state=0)
>>> cross_val_score(envelope, X, y, cv=StratifiedKFold(2), scoring="roc_auc")
array([0., 0.])

The second: as a detector is no classifier, an integer ``cv`` cuts `y` into runs. If `y` is
sorted, folds train on anomalies (the first count) or have none to test (the second count), which
makes the AUROC NaN:

>>> [(int(y[train].sum()), int(y[test].sum())) for train, test in KFold(5).split(X)]
[(10, 0), (10, 0), (10, 0), (10, 0), (0, 10)]

`NormalOnlyKFold` and `anomaly_scorer` do neither:

>>> from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer
>>> folds = NormalOnlyKFold(2, anomaly_label=1, random_state=0)
>>> cross_val_score(envelope, X, y, cv=folds, scoring=anomaly_scorer(anomaly_label=1))
array([1., 1.])

A third: a search fits on all samples in the end, the anomalies too. Pass ``refit=False``, and fit
``best_params_`` on the normal samples. Where there is no labelled anomaly at all,
`pseudo_anomaly_scorer` makes some.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, TypeAlias

import numpy as np
from sklearn.model_selection import BaseCrossValidator, StratifiedGroupKFold
from sklearn.utils import check_random_state, indexable

from skanomaly_vit._images import ImageSource, open_images, reading_options
from skanomaly_vit._labels import (
    AUTO,
    LabelWarning,
    as_label_list,
    as_labels,
    is_auto,
    show_labels,
    which_are_anomalies,
)
from skanomaly_vit._metrics import METRICS, known_metric, normality
from skanomaly_vit._pseudo_anomalies import ALTERATIONS

__all__ = ["LabelWarning", "NormalOnlyKFold", "anomaly_scorer", "pseudo_anomaly_scorer"]

_NO_ANOMALIES = (
    "Where there is no labelled anomaly, search with KFold on normal samples and "
    "scoring=pseudo_anomaly_scorer()"
)
_CHUNK = 64  # pseudo-anomalies in memory at a time


class NormalOnlyKFold(BaseCrossValidator):
    """K folds that train on normal samples and test on both kinds.

    Each normal sample and each anomaly is tested once. Anomalies are never trained on; they are
    spread over the folds evenly, those of each label too, and so are normal samples.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2. Each needs a normal sample and an anomaly to test.
    shuffle : bool, default=True
        Whether samples are put into folds at random. If not, folds are runs of samples of a
        label.
    random_state : int, RandomState instance or None, default=None
        Source of the shuffling; pass an int for folds that repeat.
    anomaly_label : label, list of labels or "auto", default="auto"
        What marks anomalies in `y`; all other labels are normal. ``"auto"`` takes +1 for normal
        and -1 for an anomaly, and refuses labels that could be read either way.

    See Also
    --------
    anomaly_scorer : The scorer to use with it.
    pseudo_anomaly_scorer : Where there is no labelled anomaly.

    Notes
    -----
    With `groups` (images of one part, one patient, one scene), all samples of a group are tested
    in the same fold, and none of them is trained on there. How even the folds are then depends on
    the groups.

    A search fits the best setting to all samples, the anomalies included, unless ``refit=False``.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.model_selection import NormalOnlyKFold
    >>> y = np.array(["good", "good", "good", "good", "crack", "crack", "scratch"])
    >>> folds = NormalOnlyKFold(2, anomaly_label=["crack", "scratch"], random_state=0)
    >>> for train, test in folds.split(y, y):
    ...     print(y[train], y[test])
    ['good' 'good'] ['good' 'good' 'crack' 'scratch']
    ['good' 'good'] ['good' 'good' 'crack']
    """

    # As scikit-learn's splitters that heed groups: they are routed here without being asked for.
    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self,
        n_splits: int = 5,
        *,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        anomaly_label: Any = AUTO,
    ) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.anomaly_label = anomaly_label

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X : object
            Ignored.
        y : object
            Ignored.
        groups : object
            Ignored.

        Returns
        -------
        n_splits : int
            The parameter.
        """
        return self.n_splits

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Generate the indices of each fold.

        Parameters
        ----------
        X : array-like of length n_samples
            The samples, of which only the number counts.
        y : array-like of shape (n_samples,)
            Labels: which samples are anomalies, and of which kind.
        groups : array-like of shape (n_samples,), default=None
            Samples that belong together.

        Yields
        ------
        train : ndarray of int
            Normal samples.
        test : ndarray of int
            The other normal samples of the fold, and its anomalies.

        Raises
        ------
        ValueError
            If a parameter is not as described, labels are missing or ambiguous, or there are not
            enough samples or groups of a kind.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(
                "NormalOnlyKFold needs y, which tells normal samples from anomalies. "
                f"{_NO_ANOMALIES}"
            )
        indexable(X, y, groups)  # same length
        is_anomaly = which_are_anomalies(y, self.anomaly_label)
        labels = as_labels(y)
        self._check_kinds(is_anomaly, labels)
        fold = self._assign(is_anomaly, _codes(labels), groups)
        for k in range(self.n_splits):
            yield np.flatnonzero((fold != k) & ~is_anomaly), np.flatnonzero(fold == k)

    def _check_parameters(self) -> None:
        n_splits = self.n_splits
        if not isinstance(n_splits, Integral) or isinstance(n_splits, bool) or n_splits < 2:
            raise ValueError(f"n_splits={n_splits!r} is not an integer of at least 2")
        if not self.shuffle and self.random_state is not None:
            raise ValueError(
                f"random_state={self.random_state!r} has no effect with shuffle=False; leave it "
                "out, or pass shuffle=True"
            )

    def _check_kinds(self, is_anomaly: np.ndarray, labels: list[Any]) -> None:
        found = f"y holds the labels {show_labels(labels)} and anomaly_label={self.anomaly_label!r}"
        n_normal, n_anomalies = np.bincount(is_anomaly, minlength=2)
        if n_anomalies == 0:
            raise ValueError(f"{found}: no sample is an anomaly. {_NO_ANOMALIES}")
        if not is_auto(self.anomaly_label):
            # A misspelt label of several would leave its anomalies among the normal samples.
            absent = set(as_label_list(self.anomaly_label)) - set(labels)
            if absent:
                raise ValueError(f"{found}: no sample is labelled {show_labels(absent)}")
        if n_normal == 0:
            raise ValueError(f"{found}: no sample is normal, so there is nothing to train on")
        if min(n_normal, n_anomalies) < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} folds need as many samples of each kind to test, but y "
                f"has {n_normal} normal ones and {n_anomalies} anomalies. Pass a smaller n_splits "
                f"or more samples. {_NO_ANOMALIES}"
            )

    def _assign(self, is_anomaly: np.ndarray, codes: np.ndarray, groups: Any) -> np.ndarray:
        """Fold in which each sample is tested."""
        if groups is not None:
            return self._assign_groups(is_anomaly, codes, _codes(as_labels(groups, "groups")))
        rng = check_random_state(self.random_state) if self.shuffle else None
        fold = np.empty(len(codes), dtype=int)
        for kind in (~is_anomaly, is_anomaly):
            fold[kind] = _deal(codes[kind], self.n_splits, rng)
        return fold

    def _assign_groups(
        self, is_anomaly: np.ndarray, codes: np.ndarray, groups: np.ndarray
    ) -> np.ndarray:
        n_groups = len(np.unique(groups))
        if n_groups < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} folds need as many groups, groups has {n_groups}. "
                "Pass a smaller n_splits"
            )
        folds = StratifiedGroupKFold(
            self.n_splits, shuffle=self.shuffle, random_state=self.random_state
        )
        # Evenness of each label can cost a fold all of its anomalies; evenness of the two kinds
        # costs that more rarely.
        for strata in (codes, is_anomaly.astype(int)):
            if np.bincount(strata).max() < self.n_splits:
                continue  # which StratifiedGroupKFold refuses: no label could be spread
            fold = np.empty(len(groups), dtype=int)
            with warnings.catch_warnings():
                # Labels with fewer samples than there are folds are in order here.
                warnings.filterwarnings("ignore", "The least populated class", UserWarning)
                for k, (_, test) in enumerate(folds.split(groups, strata, groups)):
                    fold[test] = k
            if all(_n_kinds(fold == k, is_anomaly) == 2 for k in range(self.n_splits)):
                return fold
        raise ValueError(
            f"found no way to put the {n_groups} groups into n_splits={self.n_splits} folds that "
            "all have normal samples and anomalies to test. Pass a smaller n_splits, or finer "
            "groups"
        )


def _codes(labels: list[Any]) -> np.ndarray:
    """Labels of any type -> integers, in the order in which they appear."""
    code = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([code[label] for label in labels])


def _deal(codes: np.ndarray, n_splits: int, rng: np.random.RandomState | None) -> np.ndarray:
    """Fold of each sample: as many in each, and of each label, give or take one."""
    turn = np.arange(len(codes)) % n_splits
    fold = np.empty(len(codes), dtype=int)
    start = 0
    for code, n in enumerate(np.bincount(codes)):
        # Labels take the turns one after the other; within a label, folds are runs or random.
        turns = np.sort(turn[start : start + n])
        fold[codes == code] = turns if rng is None else rng.permutation(turns)
        start += n
    return fold


def _n_kinds(mask: np.ndarray, is_anomaly: np.ndarray) -> int:
    return len(np.unique(is_anomaly[mask]))


def anomaly_scorer(metric: str = "roc_auc", *, anomaly_label: Any = AUTO) -> Scorer:
    """Scorer of outlier detectors that cannot be read upside down.

    Anomalies are the positive class, whatever their label, and the score of a sample is how
    abnormal the detector finds it.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "fpr95"}, default="roc_auc"
        ``"fpr95"`` is the share of normal samples flagged where 95 % of the anomalies are found,
        with a minus sign: greater is better for all of them.
    anomaly_label : label, list of labels or "auto", default="auto"
        What marks anomalies in `y`; all other labels are normal. ``"auto"`` takes +1 for normal
        and -1 for an anomaly, and refuses labels that could be read either way.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y)`` gives a float; to be passed as ``scoring``. It asks the
        estimator for ``score_samples`` or, of outlier detectors, for ``decision_function``.

    Raises
    ------
    ValueError
        If there is no such metric. The scorer itself raises it where `y` has only one kind of
        samples, or labels that could be read either way; a search turns that into a warning and
        a score of NaN, unless ``error_score="raise"``.

    See Also
    --------
    NormalOnlyKFold : Folds that have both kinds of samples to test.

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
    """Scorer that needs no labelled anomaly: it makes some of the normal images.

    It measures how well a detector tells the normal images of a test fold from altered copies of
    the same images.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "fpr95"}, default="roc_auc"
        As in `anomaly_scorer`. The score is its mean over `kinds`.
    kinds : sequence of str, default=("patch_shuffle", "cut_paste", "rotation")
        How images are altered. ``"patch_shuffle"``: cut into `n_patches` x `n_patches` patches
        that change places. ``"cut_paste"``: a rectangle of the image, a little lighter or
        darker, pasted elsewhere [1]_. ``"rotation"``: by 90, 180 or 270 degrees; images
        that are not square by 180. Leave out what is normal: solar cells may lie either way.
    n_patches : int, default=4
        Patches in a row and in a column, at least 2.
    random_state : int, RandomState instance or None, default=0
        Source of the alterations. It is drawn from here and now, once: all estimators that a
        scorer scores on the same images meet the same pseudo-anomalies.
    anomaly_label : label, list of labels or "auto", default="auto"
        What marks anomalies in `y`, if there is any; they are left out.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)`` gives a float; to be passed as ``scoring``. `X` are
        images of any form that the detector takes. Each normal one is scored once, and once
        more for each of `kinds`.

    Raises
    ------
    ValueError
        If a parameter is not as described. The scorer itself raises it where no sample is normal
        or an image is too small to be altered.

    See Also
    --------
    anomaly_scorer : Where there are labelled anomalies: trust these more.

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
        # A generator of its own: neither the other images nor the other kinds change the draw.
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
    """Images -> an array where they are alike, rows where the estimator takes rows, or a list."""
    if len({(image.shape, image.dtype) for image in images}) > 1:
        return images
    stacked = np.stack(images)  # (n, h, w, 3)
    if image_shape is None:
        return stacked
    return stacked[..., : image_shape[2]].reshape(len(images), -1)
