"""Folds that train on normal samples only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.model_selection import BaseCrossValidator, StratifiedGroupKFold
from sklearn.utils import check_random_state, indexable

from skanomaly_vit._images.units import find_copies, join
from skanomaly_vit._utils.labels import (
    AUTO,
    absent_labels,
    as_labels,
    show_labels,
    which_are_anomalies,
)

#: Advice in errors.
NO_ANOMALIES = (
    "Where there is no labelled anomaly, search with KFold on normal samples and "
    "scoring=pseudo_anomaly_scorer()"
)


class NormalOnlyKFold(BaseCrossValidator):
    """K folds that train on normal samples and test on both kinds.

    The folds test each normal sample and each anomaly once, and train on no anomaly. They share
    out normal samples and anomalies evenly, also those of each label.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2. Each needs a normal sample and an anomaly to test.
    shuffle : bool, default=True
        Whether to put samples into folds at random. If not, folds are runs of samples of a label.
    random_state : int, RandomState instance or None, default=None
        Source of the shuffling; pass an int for folds that repeat.
    anomaly_label : label, list of labels or "auto", default="auto"
        Label(s) of anomalies in `y`; all other labels are normal. ``"auto"`` takes +1 for normal
        and -1 for an anomaly, and raises for other labels, which could mean either.

    See Also
    --------
    anomaly_scorer : The scorer for these folds.
    pseudo_anomaly_scorer : Needs no labelled anomaly.

    Notes
    -----
    With `groups` (images of one part, one patient, one scene), one fold tests all samples of a
    group and trains on none of them. The groups then decide how even the folds are. Copies of one
    image, or equal rows of features, are a group without being named.

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

    # As in scikit-learn's splitters with groups: metadata routing passes groups without a request.
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
            The samples: images of any form, or rows of features. Their number counts, and which of
            them are copies; an `X` of equal samples stands for any.
        y : array-like of shape (n_samples,)
            Labels of normal samples and of each kind of anomaly.
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
                f"{NO_ANOMALIES}"
            )
        indexable(X, y, groups)  # same length
        is_anomaly = which_are_anomalies(y, self.anomaly_label)
        labels = as_labels(y)
        self._check_kinds(is_anomaly, labels)
        fold = self._assign(is_anomaly, _codes(labels), _units(X, groups))
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
            raise ValueError(f"{found}: no sample is an anomaly. {NO_ANOMALIES}")
        # A misspelt label of several would leave its anomalies among the normal samples.
        absent = absent_labels(labels, self.anomaly_label)
        if absent:
            raise ValueError(f"{found}: no sample is labelled {show_labels(absent)}")
        if n_normal == 0:
            raise ValueError(f"{found}: no sample is normal, so there is nothing to train on")
        if min(n_normal, n_anomalies) < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} folds need as many samples of each kind to test, but y "
                f"has {n_normal} normal ones and {n_anomalies} anomalies. Pass a smaller n_splits "
                f"or more samples. {NO_ANOMALIES}"
            )

    def _assign(
        self, is_anomaly: np.ndarray, codes: np.ndarray, groups: np.ndarray | None
    ) -> np.ndarray:
        """Fold in which each sample is tested."""
        if groups is not None:
            return self._assign_groups(is_anomaly, codes, groups)
        rng = check_random_state(self.random_state) if self.shuffle else None
        fold = np.empty(len(codes), dtype=int)
        for kind in (~is_anomaly, is_anomaly):
            fold[kind] = _deal(codes[kind], self.n_splits, rng)
        return fold

    def _assign_groups(
        self, is_anomaly: np.ndarray, codes: np.ndarray, groups: np.ndarray
    ) -> np.ndarray:
        groups = np.unique(groups, return_inverse=True)[1]
        n_groups = groups.max() + 1
        if n_groups < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} folds need as many groups, and there are {n_groups} "
                "(copies of one sample are in one). Pass a smaller n_splits"
            )
        if self.shuffle:
            # Here, since scikit-learn before 1.8 parts groups from their labels as it shuffles.
            order = check_random_state(self.random_state).permutation(n_groups)
            groups = np.argsort(order)[groups]
        folds = StratifiedGroupKFold(self.n_splits)
        # Even labels can leave a fold without anomalies; even kinds do so more rarely.
        for strata in (codes, is_anomaly.astype(int)):
            if np.bincount(strata).max() < self.n_splits:
                continue  # StratifiedGroupKFold would raise: no label has enough samples
            fold = np.empty(len(groups), dtype=int)
            with warnings.catch_warnings():
                # Here labels may have fewer samples than there are folds.
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


def _units(X: Any, groups: Any) -> np.ndarray | None:
    """Number of the unit of each sample; None if each is its own, and it has no group."""
    copies = find_copies(X)
    if groups is None:
        return copies
    named = _codes(as_labels(groups, "groups"))
    return named if copies is None else _codes(join(named, copies).tolist())


def _codes(labels: list[Any]) -> np.ndarray:
    """Labels of any type -> integers, in the order in which they appear."""
    code = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([code[label] for label in labels])


def _deal(codes: np.ndarray, n_splits: int, rng: np.random.RandomState | None) -> np.ndarray:
    """Fold of each sample: equal numbers in all folds, and of each label, give or take one."""
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
