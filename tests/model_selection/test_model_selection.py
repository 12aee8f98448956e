"""Folds and scorers: samples for training and testing, and the sign of scores."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import OneClassSVM

from skanomaly_vit import GaussianDensity, ViTFeatures
from skanomaly_vit._utils.labels import show_labels, warn_about_labels, which_are_anomalies
from skanomaly_vit.exceptions import LabelWarning
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer, pseudo_anomaly_scorer
from skanomaly_vit.model_selection._pseudo_anomalies import ALTERATIONS

SIGNS = np.array([1] * 20 + [-1] * 6)

#: The same samples labelled in other ways, and what marks anomalies there.
FORMS = {
    "+1 and -1": (SIGNS, "auto"),
    "floats": (SIGNS.astype(float), "auto"),
    "list": (SIGNS.tolist(), "auto"),
    "series": (pd.Series(SIGNS, index=np.arange(26)[::-1]), "auto"),
    "1 and 0": ((SIGNS == -1).astype(int), 1),
    "0 and 1": ((SIGNS == 1).astype(int), 0),
    "booleans": (SIGNS == -1, True),
    "strings": (np.where(SIGNS == 1, "good", "crack"), "crack"),
    "category": (pd.Series(np.where(SIGNS == 1, "good", "crack")).astype("category"), "crack"),
    "several": (np.array(["good"] * 20 + ["crack", "scratch"] * 3), ["crack", "scratch"]),
    "tuple": (["good"] * 20 + ["crack", "scratch"] * 3, ("crack", "scratch")),
}


@pytest.fixture
def X(images, odd_images) -> np.ndarray:
    """Images that go with the labels in `SIGNS`."""
    return np.concatenate([images, odd_images])


@pytest.fixture
def points() -> np.ndarray:
    """Points in the plane that go with the labels in `SIGNS`; anomalies are far off."""
    rng = np.random.RandomState(0)
    return np.where(SIGNS[:, None] == 1, 0, 9) + rng.normal(size=(26, 2))


# --- labels


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_all_forms_say_the_same(form):
    is_anomaly = which_are_anomalies(*FORMS[form])
    assert is_anomaly.dtype == bool
    np.testing.assert_array_equal(is_anomaly, SIGNS == -1)


@pytest.mark.parametrize(
    ("y", "hint"),
    [
        ([0, 1, 0], r"\[0, 1\].*Pass the label of anomalies: anomaly_label=0 or anomaly_label=1$"),
        ([True, False], "anomaly_label=False or anomaly_label=True$"),
        (np.array([True, True]), "anomaly_label=label, or a list of labels$"),
        (["good", "crack"], "anomaly_label='crack' or anomaly_label='good'$"),
        (["a", "b", "c"], r"\['a', 'b', 'c'\].*anomaly_label=label, or a list of labels$"),
        (np.array(["1", "-1"]), "anomaly_label='-1' or anomaly_label='1'$"),
        ([1, -1, 0], r"\[-1, 0, 1\]"),
        ([0, 0], r"\[0\]"),
        (np.arange(9), r"\[0, 1, 2, 3, 4, 5, \.\.\. and 3 more\]"),
    ],
)
def test_labels_that_could_be_read_either_way_are_refused(y, hint):
    with pytest.raises(
        ValueError, match=r"'auto' knows \+1 \(normal\) and -1 \(anomaly\) only"
    ) as raised:
        which_are_anomalies(y)
    assert raised.match(hint)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("label", ["good", 1, True])
def test_missing_labels_are_named(missing, label):
    with pytest.raises(ValueError, match="sample 2 has no label: y holds "):
        which_are_anomalies([label, label, missing, label], label)


def test_labels_have_one_axis():
    with pytest.raises(ValueError, match=r"y has shape \(2, 1\); pass one label a sample"):
        which_are_anomalies([[1], [-1]])
    with pytest.raises(ValueError, match="y is None"):
        which_are_anomalies(None)


def test_labels_of_another_type_are_not_alike():
    assert not which_are_anomalies([0, 1], "1").any()
    assert not which_are_anomalies(["0", "1"], 1).any()
    y = [3, "crack", "good", "3"]
    assert which_are_anomalies(y, [3, "crack"]).tolist() == [True, True, False, False]
    assert which_are_anomalies(np.array(y, dtype=object), [3, "crack"]).sum() == 2


def test_label_auto_can_be_a_label():
    np.testing.assert_array_equal(which_are_anomalies(["auto", "bus"], ["auto"]), [True, False])


def test_labels_are_shown_as_python_writes_them():
    assert show_labels([np.int64(1), np.str_("a"), np.float64(0.5)]) == "[0.5, 1, 'a']"


# --- labels that fit should not have got


@pytest.mark.parametrize(
    ("y", "found"),
    [
        (SIGNS, r"several kinds, \[-1, 1\]"),
        (["good", "crack"], r"several kinds, \['crack', 'good'\]"),
        (pd.Series([0, 1, 0]), r"several kinds, \[0, 1\]"),
        ([-1, -1], "the label -1 only, which marks anomalies"),
    ],
)
def test_fit_is_warned_of_anomalies(y, found):
    with pytest.warns(LabelWarning, match=f"fit got y with .*{found}.*NormalOnlyKFold"):
        warn_about_labels(y)


@pytest.mark.parametrize("y", [None, [1, 1], np.zeros(3), ["good"], [True, True], [], 1])
def test_fit_is_not_warned_of_one_label(y):
    warn_about_labels(y)


# --- folds

label_lists = st.lists(
    st.sampled_from(["good", "fine", "crack", "scratch", "hole"]), min_size=4, max_size=60
)
ANOMALOUS = ["crack", "scratch", "hole"]


def folds_of(y, groups=None, n_splits=2, **parameters):
    """Train and test parts of all folds; those labels of `ANOMALOUS` that `y` has are anomalies."""
    label = [label for label in ANOMALOUS if label in y]
    folds = NormalOnlyKFold(n_splits, anomaly_label=label, **parameters)
    return list(folds.split(np.zeros(len(y)), y, groups))


def check_partition(y, parts):
    is_anomaly = np.isin(y, ANOMALOUS)
    for train, test in parts:
        assert not is_anomaly[train].any()
        assert is_anomaly[test].any()
        assert not is_anomaly[test].all()
        assert set(np.flatnonzero(~is_anomaly)) == set(train) | set(test[~is_anomaly[test]])
        assert not set(train) & set(test)
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()
    tested = np.concatenate([test for _, test in parts])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(y)))


@given(
    y=label_lists,
    n_splits=st.integers(2, 5),
    seed=st.none() | st.integers(0, 9),
)
@settings(deadline=None)
def test_all_is_tested_once_and_only_normal_samples_are_trained_on(y, n_splits, seed):
    y = np.array(y)
    is_anomaly = np.isin(y, ANOMALOUS)
    assume(min(is_anomaly.sum(), (~is_anomaly).sum()) >= n_splits)
    parts = folds_of(y, n_splits=n_splits, shuffle=seed is not None, random_state=seed)
    assert len(parts) == n_splits
    check_partition(y, parts)
    # Each label, and each kind, is in all folds equally often, give or take one.
    for mask in [is_anomaly, ~is_anomaly, *(y == label for label in set(y.tolist()))]:
        assert np.ptp([mask[test].sum() for _, test in parts]) <= 1


@given(data=st.data(), n_splits=st.integers(2, 4), seed=st.none() | st.integers(0, 9))
@settings(deadline=None)
def test_no_group_is_on_both_sides(data, n_splits, seed):
    y = np.array(data.draw(label_lists))
    one_group_each = st.lists(st.integers(0, 12), min_size=len(y), max_size=len(y))
    groups = np.array(data.draw(one_group_each))
    is_anomaly = np.isin(y, ANOMALOUS)
    assume(min(is_anomaly.sum(), (~is_anomaly).sum()) >= n_splits)
    try:
        parts = folds_of(y, groups, n_splits, shuffle=seed is not None, random_state=seed)
    except ValueError as error:
        assert "groups" in str(error)
        return
    check_partition(y, parts)
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test])


def test_groups_of_one_are_as_good_as_none():
    parts = folds_of(np.array(["good"] * 20 + ["crack"] * 6), np.arange(26), 3, random_state=0)
    assert sorted(np.sum(test < 20) for _, test in parts) == [6, 7, 7]
    assert [np.sum(test >= 20) for _, test in parts] == [2, 2, 2]


def test_rare_kinds_of_anomalies_do_not_cost_a_fold_all_of_its_anomalies():
    y = np.array(["good"] * 40 + ["crack", "scratch", "hole"])
    for seed in range(20):
        parts = folds_of(y, [f"part {i}" for i in range(43)], 3, random_state=seed)
        assert [np.isin(y[test], ANOMALOUS).sum() for _, test in parts] == [1, 1, 1]


def test_groups_are_kept_together_where_every_label_is_rare():
    y = np.array(["good", "good", "fine", "fine", "crack", "scratch", "hole"])
    parts = folds_of(y, list("aabcdef"), 3, random_state=0)
    check_partition(y, parts)


def test_anomalies_of_each_label_are_spread():
    y = np.array(["good"] * 9 + ["crack"] * 3 + ["scratch"] * 6)
    for _, test in folds_of(y, n_splits=3, random_state=0):
        assert list(y[test]) == ["good"] * 3 + ["crack"] + ["scratch"] * 2


def test_a_random_state_repeats_and_another_differs():
    y = np.where(SIGNS == 1, "good", "crack")
    first, again, other = (folds_of(y, random_state=seed) for seed in (0, 0, 1))
    for (_, test), (_, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(test, same)
    assert not np.array_equal(first[0][1], other[0][1])


def test_without_shuffling_folds_are_runs():
    parts = folds_of(np.where(SIGNS == 1, "good", "crack"), shuffle=False)
    np.testing.assert_array_equal(parts[0][1], np.r_[0:10, 20:23])
    np.testing.assert_array_equal(parts[1][1], np.r_[10:20, 23:26])


@pytest.mark.parametrize("form", FORMS)
def test_folds_do_not_hang_on_the_form_of_the_labels(form):
    y, label = FORMS[form]
    for train, test in NormalOnlyKFold(3, random_state=0, anomaly_label=label).split(y, y):
        assert set(train) == set(range(20)) - set(test)
        assert np.sum(test >= 20) == 2


def test_folds_in_numbers_and_words():
    folds = NormalOnlyKFold(3, random_state=0, anomaly_label=["crack"])
    assert folds.get_n_splits() == 3
    assert " ".join(repr(folds).split()) == (
        "NormalOnlyKFold(anomaly_label=['crack'], n_splits=3, random_state=0, shuffle=True)"
    )


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({"n_splits": 1}, SIGNS, "n_splits=1 is not an integer of at least 2"),
        ({"n_splits": 2.0}, SIGNS, "n_splits=2.0 is not an integer"),
        ({"shuffle": False, "random_state": 0}, SIGNS, "random_state=0 has no effect"),
        ({}, None, "needs y, .* scoring=pseudo_anomaly_scorer"),
        ({}, [1] * 26, "no sample is an anomaly.*pseudo_anomaly_scorer"),
        ({}, [-1] * 26, "no sample is normal, so there is nothing to train on"),
        ({}, SIGNS == 1, "anomaly_label=False or anomaly_label=True"),
        ({}, SIGNS[:-1], "inconsistent numbers of samples: .*26, 25"),
        ({"n_splits": 7}, SIGNS, "n_splits=7 folds .* 20 normal ones and 6 anomalies"),
        ({"n_splits": 7}, -SIGNS, "n_splits=7 folds .* 6 normal ones and 20 anomalies"),
        ({"anomaly_label": "crak"}, FORMS["strings"][0], r"\['crack', 'good'\] and .*'crak'"),
        (
            {"anomaly_label": ["crack", "scrach"]},
            FORMS["several"][0],
            r"no sample is labelled \['scrach'\]",
        ),
    ],
)
def test_folds_that_cannot_be_made(parameters, y, message):
    with pytest.raises(ValueError, match=message):
        list(NormalOnlyKFold(**parameters).split(np.zeros(26), y))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 26, "n_splits=2 folds need as many groups, and there are 1"),
        (["a"] * 20 + ["b"] * 6, "no way to put the 2 groups into n_splits=2 folds"),
        (["a"] * 25 + [None], "sample 25 has no label: groups holds None"),
        (["a"] * 25, "inconsistent numbers of samples"),
    ],
)
def test_groups_that_cannot_be_kept_together(groups, message):
    with pytest.raises(ValueError, match=message):
        list(NormalOnlyKFold(2).split(np.zeros(26), SIGNS, groups))


def test_groups_reach_the_folds(points):
    groups = np.arange(26) % 5
    folds, scorer = NormalOnlyKFold(3, random_state=0), anomaly_scorer()
    routing = folds.get_metadata_routing()
    assert routing.split.requests == {"groups": True}
    with sklearn.config_context(enable_metadata_routing=True):
        for params in ({"groups": groups}, {}):
            search = GridSearchCV(
                OneClassSVM(), {"nu": [0.1]}, cv=folds, scoring=scorer, refit=False
            )
            search.fit(points, SIGNS, **params)
            expected = [
                scorer(OneClassSVM(nu=0.1).fit(points[train]), points[test], SIGNS[test])
                for train, test in folds.split(points, SIGNS, **params)
            ]
            scores = [search.cv_results_[f"split{k}_test_score"][0] for k in range(3)]
            np.testing.assert_array_equal(scores, expected)


# --- the scorer of labelled anomalies


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "fpr95"])
def test_scorer_is_the_right_way_up(points, form, metric):
    y, label = FORMS[form]
    density = GaussianDensity().fit(points[:20])
    best = 0.0 if metric == "fpr95" else 1.0
    score = anomaly_scorer(metric, anomaly_label=label)(density, points, y)
    assert isinstance(score, float)
    assert score == best


def overlapping(n=400):
    """A detector of points on a line, and points of both kinds that it tells apart partly."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(n) < 0.25, -1, 1)
    X = rng.normal(0, 1, (n, 1)) + 1.5 * (y[:, None] == -1)
    return FixedScore(), X, y


class FixedScore(EllipticEnvelope):
    """Scores a point by its coordinate, higher = more abnormal."""

    def score_samples(self, X):
        return -np.asarray(X)[:, 0]


def test_values_of_the_metrics():
    detector, X, y = overlapping()
    high = X[:, 0]
    assert anomaly_scorer("roc_auc")(detector, X, y) == roc_auc_score(y == -1, high)
    expected = average_precision_score(y == -1, high)
    assert anomaly_scorer("average_precision")(detector, X, y) == expected
    # The highest threshold that finds 95 % of the anomalies.
    anomalies = np.sort(high[y == -1])[::-1]
    threshold = anomalies[int(np.ceil(0.95 * len(anomalies))) - 1]
    expected = -np.mean(high[y == 1] >= threshold)
    assert anomaly_scorer("fpr95")(detector, X, y) == pytest.approx(expected, abs=1e-12)


def test_fpr_at_exactly_95_percent():
    y = np.array([-1] * 20 + [1] * 10)
    high = np.r_[np.full(19, 2.0), 0.0, np.full(9, 1.0), 3.0][:, None]
    assert anomaly_scorer("fpr95")(FixedScore(), high, y) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "estimator",
    [
        OneClassSVM(),
        IsolationForest(random_state=0),
        GaussianMixture(),
        make_pipeline(StandardScaler(), OneClassSVM()),
        GridSearchCV(GaussianDensity(), {"shrinkage": [0.1]}, cv=2),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_scorer_takes_any_detector_of_scikit_learns_kind(points, estimator):
    if isinstance(estimator, GridSearchCV):
        estimator.set_params(scoring=lambda density, X: density.score_samples(X).mean())
    estimator.fit(points[:20])
    assert anomaly_scorer()(estimator, points, SIGNS) > 0.9


def test_outlier_detector_without_score_samples_is_asked_for_its_decision(points):
    class OnlyDecision(OneClassSVM):
        score_samples = property()

    estimator = OnlyDecision().fit(points[:20])
    assert anomaly_scorer()(estimator, points, SIGNS) == 1.0


def test_scores_that_could_be_read_either_way_are_refused(points):
    class OfAnotherLibrary:
        def decision_function(self, X):
            return np.ones(len(X))

    classifier = LogisticRegression().fit(points, SIGNS)
    for estimator in (classifier, OfAnotherLibrary(), StandardScaler()):
        with pytest.raises(ValueError, match="is no outlier detector of scikit-learn's kind"):
            anomaly_scorer()(estimator, points, SIGNS)


def test_scorer_of_an_unknown_metric():
    with pytest.raises(ValueError, match=r"metric='f1' is not one of \['roc_auc', 'average"):
        anomaly_scorer("f1")
    with pytest.raises(ValueError, match="metric='f1'"):
        pseudo_anomaly_scorer("f1")


@pytest.mark.parametrize("kind", [1, -1])
def test_one_kind_of_samples_is_an_error(points, kind):
    detector = OneClassSVM().fit(points[:19])  # not as many as are scored
    message = r"roc_auc is not defined: of the \d+ samples .* \(labels \[-?1\], .*NormalOnlyKFold"
    with pytest.raises(ValueError, match=message):
        anomaly_scorer()(detector, points[kind == SIGNS], SIGNS[kind == SIGNS])


def test_training_folds_of_normal_samples_are_nan_and_told(points):
    normal = points[SIGNS == 1]
    for detector in (OneClassSVM(), make_pipeline(StandardScaler(), IsolationForest())):
        fitted = detector.fit(normal)
        with pytest.warns(UndefinedMetricWarning, match="on a training fold of normal samples"):
            assert np.isnan(anomaly_scorer()(fitted, normal, np.ones(len(normal))))
        with pytest.raises(ValueError, match="Pass cv=NormalOnlyKFold"):
            anomaly_scorer()(fitted, normal[:-1], np.ones(len(normal) - 1))


@pytest.mark.filterwarnings("ignore:.*is not defined on a training fold")
@pytest.mark.filterwarnings("ignore:One or more of the train scores are non-finite")
def test_searches_that_score_training_folds(points):
    options = {
        "scoring": anomaly_scorer(),
        "cv": NormalOnlyKFold(2, random_state=0),
        "refit": False,
        "error_score": "raise",
    }
    grid = {"gamma": [0.1, 1.0]}
    search = GridSearchCV(OneClassSVM(), grid, return_train_score=True, **options)
    search.fit(points, SIGNS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert np.isnan(search.cv_results_["mean_train_score"]).all()
    halving = HalvingGridSearchCV(
        OneClassSVM(), grid, resource="max_iter", max_resources=9000, min_resources=3000, **options
    )
    halving.fit(points, SIGNS)
    assert np.isfinite(halving.cv_results_["mean_test_score"]).all()


def test_in_a_search_one_kind_of_samples_is_a_warning_that_says_why(points):
    with pytest.warns(UserWarning, match=r"Scoring failed(.|\n)*Pass cv=NormalOnlyKFold"):
        scores = cross_val_score(OneClassSVM(), points, SIGNS, cv=4, scoring=anomaly_scorer())
    assert np.isnan(scores[0])


def test_scorers_in_words_and_in_a_pickle(points):
    detector = OneClassSVM().fit(points[:20])
    scorer = anomaly_scorer("fpr95", anomaly_label=[1, 2])
    assert repr(scorer) == "anomaly_scorer('fpr95', anomaly_label=[1, 2])"
    again = pickle.loads(pickle.dumps(anomaly_scorer()))
    assert again(detector, points, SIGNS) == 1.0
    pseudo = pseudo_anomaly_scorer(kinds=["rotation"], random_state=3)
    expected = (
        "pseudo_anomaly_scorer('roc_auc', kinds=('rotation',), n_patches=4, random_state=3, "
        "anomaly_label='auto')"
    )
    assert repr(pseudo) == expected
    assert pickle.loads(pickle.dumps(pseudo)) == pseudo


# --- with the detector


@pytest.mark.parametrize("form", ["+1 and -1", "1 and 0", "strings"])
def test_detector_in_cross_validation(make_detector, X, form):
    y, label = FORMS[form]
    folds = NormalOnlyKFold(2, random_state=0, anomaly_label=label)
    scorer = anomaly_scorer(anomaly_label=label)
    scores = cross_val_score(make_detector(), X, y, cv=folds, scoring=scorer)
    np.testing.assert_array_equal(scores, [1.0, 1.0])


def test_detector_in_a_search_in_two_processes(make_detector, X):
    grid = {"pca_variance": [0.5, 0.9]}
    scoring = {
        "auc": anomaly_scorer(),
        "fpr": anomaly_scorer("fpr95"),
        "pseudo": pseudo_anomaly_scorer(),
    }
    searches = [
        GridSearchCV(
            make_detector(),
            grid,
            scoring=scoring,
            cv=NormalOnlyKFold(2, random_state=0),
            refit=False,
            n_jobs=n_jobs,
            error_score="raise",
        ).fit(X, SIGNS)
        for n_jobs in (1, 2)
    ]
    for name in scoring:
        scores = [search.cv_results_[f"mean_test_{name}"] for search in searches]
        np.testing.assert_allclose(*scores)
    assert (searches[0].cv_results_["mean_test_auc"] == 1).all()
    assert (searches[0].cv_results_["mean_test_fpr"] == 0).all()


# --- the traps of plain scikit-learn


def test_trap_roc_auc_is_upside_down_where_1_marks_anomalies(points):
    y = (SIGNS == -1).astype(int)
    folds = NormalOnlyKFold(3, random_state=0, anomaly_label=1)
    plain = cross_val_score(OneClassSVM(), points, y, cv=folds, scoring="roc_auc")
    ours = cross_val_score(
        OneClassSVM(), points, y, cv=folds, scoring=anomaly_scorer(anomaly_label=1)
    )
    np.testing.assert_array_equal(plain, [0, 0, 0])
    np.testing.assert_array_equal(ours, [1, 1, 1])
    # And where that could happen to ours, it says so.
    with pytest.raises(ValueError, match="anomaly_label=0 or anomaly_label=1"):
        cross_val_score(
            OneClassSVM(), points, y, cv=folds, scoring=anomaly_scorer(), error_score="raise"
        )


class Remembering(OneClassSVM):
    """Warns as the detector does, and keeps what it was fitted on."""

    seen: list = []  # noqa: RUF012

    def fit(self, X, y=None):
        warn_about_labels(y)
        self.seen.append(np.asarray(y))
        return super().fit(X)


@pytest.fixture
def remembering():
    Remembering.seen.clear()
    return Remembering()


@pytest.mark.filterwarnings("always::skanomaly_vit.exceptions.LabelWarning")
@pytest.mark.filterwarnings("always::sklearn.exceptions.UndefinedMetricWarning")
def test_trap_integer_cv_on_sorted_labels_trains_on_anomalies_or_yields_nan(points, remembering):
    with (
        pytest.warns(UndefinedMetricWarning, match="Only one class is present"),
        pytest.warns(LabelWarning, match=r"several kinds, \[-1, 1\]"),
    ):
        plain = cross_val_score(remembering, points, SIGNS, cv=4, scoring="roc_auc")
    assert np.isnan(plain).any()
    assert all((y == -1).any() for y in remembering.seen[:-1])


COPIED = np.repeat(np.arange(13), 2)  # sample -> image


def as_paths(tmp_path, images):
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place:02}.png")
    return [tmp_path / f"{place:02}.png" for place in range(len(images))]


@pytest.mark.parametrize("form", ["arrays", "paths", "features"])
@pytest.mark.parametrize("grouped", [False, True])
def test_copies_are_on_one_side_of_each_fold(form, grouped, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), dtype=np.uint8)[COPIED]
    X = {"arrays": images, "features": images.reshape(26, -1) / 255}.get(form)
    X = as_paths(tmp_path, images) if X is None else X
    y = np.where(COPIED % 3, "good", "crack")
    units, groups = COPIED, None
    if grouped:
        units = COPIED // 3
        groups = [f"lot {number}" for number in units]
    folds = NormalOnlyKFold(3, anomaly_label="crack", random_state=0)
    parts = list(folds.split(X, y, groups))
    for train, test in parts:
        assert not set(units[train]) & set(units[test])
    np.testing.assert_array_equal(np.sort(np.concatenate([t for _, t in parts])), np.arange(26))


def test_copies_join_groups():
    X = np.arange(12.0)[:, np.newaxis].repeat(2, axis=1)
    X[5] = X[6]  # the last of a group, and the first of the next
    y, groups = np.tile([1, 1, -1], 4), np.repeat(np.arange(4), 3)
    joined = np.array([0, 1, 1, 2])[groups]
    for train, test in NormalOnlyKFold(3, random_state=0).split(X, y, groups):
        assert not set(joined[train]) & set(joined[test])
    with pytest.raises(ValueError, match=r"as many groups, and there are 3 \(copies"):
        list(NormalOnlyKFold(4, random_state=0).split(X, y, groups))


@pytest.mark.parametrize(
    "X",
    [np.zeros(26), np.zeros((26, 1)), SIGNS, np.where(SIGNS > 0, "good", "crack"), [None] * 26],
    ids=["zeros", "rows of zeros", "signs", "labels", "nothing"],
)
def test_what_tells_no_samples_apart_has_no_copies(X):
    folds = NormalOnlyKFold(2, random_state=0)
    expected = list(folds.split(np.arange(26), SIGNS))
    for found, part in zip(folds.split(X, SIGNS), expected, strict=True):
        np.testing.assert_array_equal(found[0], part[0])
        np.testing.assert_array_equal(found[1], part[1])


def test_folds_of_ours_do_neither(points, remembering):
    folds = NormalOnlyKFold(4, random_state=0)
    ours = cross_val_score(remembering, points, SIGNS, cv=folds, scoring="roc_auc")
    assert np.isfinite(ours).all()  # no warning either: y is +1 throughout
    assert all((y == 1).all() for y in remembering.seen)


def test_trap_a_search_fits_on_anomalies_in_the_end(points, remembering):
    folds = NormalOnlyKFold(2, random_state=0)
    search = GridSearchCV(remembering, {"nu": [0.1, 0.2]}, cv=folds, scoring=anomaly_scorer())
    with pytest.warns(LabelWarning, match="refit=False"):
        search.fit(points, SIGNS)
    assert (remembering.seen[-1] == -1).any()
    search.set_params(refit=False).fit(points, SIGNS)  # warns no more
    assert search.best_params_["nu"] in (0.1, 0.2)


def test_stratified_folds_of_scikit_learn_warn_too(points, remembering):
    with pytest.warns(LabelWarning):
        cross_val_score(remembering, points, SIGNS, cv=StratifiedKFold(2), scoring=anomaly_scorer())


# --- pseudo-anomalies


def noise(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("kind", ALTERATIONS)
@given(
    height=st.integers(2, 24),
    width=st.integers(2, 24),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_altered_images_are_images_of_the_same_kind(kind, height, width, dtype, seed):
    image = noise((height, width, 3), dtype, seed)
    image.flags.writeable = False  # what is read may be a view of the user's pixels
    altered, again = (ALTERATIONS[kind](image, np.random.default_rng(seed), 2) for _ in range(2))
    assert altered.shape == image.shape
    assert altered.dtype == image.dtype
    assert not np.array_equal(altered, image)
    np.testing.assert_array_equal(altered, again)
    if np.dtype(dtype).kind == "f":
        assert altered.min() >= 0
        assert altered.max() <= 1


@pytest.mark.parametrize("n_patches", [2, 4])
def test_shuffled_patches_are_the_same_patches_elsewhere(n_patches):
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = noise((18, 13, 3), np.uint8)
        altered = ALTERATIONS["patch_shuffle"](image, rng, n_patches)
        h, w = 18 // n_patches, 13 // n_patches
        corners = [(i * h, j * w) for i in range(n_patches) for j in range(n_patches)]
        before, after = (
            {x[i : i + h, j : j + w].tobytes() for i, j in corners} for x in (image, altered)
        )
        assert before == after
        assert not np.array_equal(altered, image)
        np.testing.assert_array_equal(altered[n_patches * h :], image[n_patches * h :])
        np.testing.assert_array_equal(altered[:, n_patches * w :], image[:, n_patches * w :])


def test_shuffling_four_patches_never_leaves_them_where_they_are():
    image = noise((2, 2, 3), np.uint8)
    for seed in range(200):  # one draw in 24 would
        altered = ALTERATIONS["patch_shuffle"](image, np.random.default_rng(seed), 2)
        assert not np.array_equal(altered, image)


def test_pasted_rectangle_is_a_part_of_the_image():
    image = noise((40, 60, 3), np.uint8)
    shares = []
    for seed in range(50):
        altered = ALTERATIONS["cut_paste"](image, np.random.default_rng(seed), 4)
        changed = (altered != image).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        shares.append(height * width / (40 * 60))
        patch = altered[rows[0] :, columns[0] :][:height, :width].astype(float)
        windows = np.lib.stride_tricks.sliding_window_view(image, (height, width), (0, 1))
        # (y, x, 3, height, width): somewhere in the image, up to 10 % lighter or darker
        error = np.abs(windows - patch.transpose(2, 0, 1)) - 0.1 * windows
        assert error.max(axis=(2, 3, 4)).min() <= 0.5
    assert min(shares) > 0.01
    assert max(shares) < 0.17
    assert np.ptp(shares) > 0.05


def test_pasted_rectangle_never_comes_back_where_it_was():
    image = np.array([[10, 40], [100, 200]], np.uint8)[..., None].repeat(3, axis=-1)
    for seed in range(50):  # one of four places
        altered = ALTERATIONS["cut_paste"](image, np.random.default_rng(seed), 2)
        change = np.abs(altered.astype(float) - image) / image
        assert change.max() > 0.4


def test_pasted_rectangle_of_a_grey_image_is_grey():
    image = np.repeat(noise((20, 20, 1), np.uint8), 3, axis=-1)
    altered = ALTERATIONS["cut_paste"](image, np.random.default_rng(0), 4)
    np.testing.assert_array_equal(altered, altered[..., :1].repeat(3, axis=-1))


def test_rotations_are_of_all_three_angles():
    image = noise((6, 6, 3), np.uint8)
    turned = {
        ALTERATIONS["rotation"](image, np.random.default_rng(seed), 4).tobytes()
        for seed in range(30)
    }
    assert turned == {np.rot90(image, k).tobytes() for k in (1, 2, 3)}


def test_images_that_are_not_square_are_turned_upside_down():
    image = noise((4, 6, 3), np.uint8)
    turned = ALTERATIONS["rotation"](image, np.random.default_rng(0), 4)
    np.testing.assert_array_equal(turned, image[::-1, ::-1])


# --- the scorer that makes them


class Recording:
    """An estimator that keeps what it is given, and finds more abnormal what differs more."""

    def __init__(self, image_shape=None):
        self.given = []
        if image_shape is not None:
            self.image_shape = image_shape

    def score_samples(self, X):
        self.given.append(X)
        images = [np.asarray(x, dtype=float) for x in X]
        return np.array([-np.abs(np.diff(x, axis=0)).mean() for x in images])


def test_pseudo_anomalies_are_made_of_the_images_and_compared_with_them(images):
    recording = Recording()
    score = pseudo_anomaly_scorer()(recording, images)
    assert isinstance(score, float)
    normal, *altered = recording.given
    np.testing.assert_array_equal(normal, images)
    assert [x.shape for x in altered] == [images.shape] * 3
    assert [x.dtype for x in altered] == [np.uint8] * 3
    expected = [
        roc_auc_score(
            np.repeat([0, 1], 20),
            -np.concatenate([recording.score_samples(x) for x in (normal, other)]),
        )
        for other in altered
    ]
    assert score == pytest.approx(np.mean(expected))
    assert expected[0] == 1  # edges between shuffled patches


def test_pseudo_anomalies_repeat_and_do_not_hang_on_each_other(images):
    def altered(X, **parameters):
        recording = Recording()
        pseudo_anomaly_scorer(**parameters)(recording, X)
        return recording.given[1:]

    everything = altered(images)
    np.testing.assert_array_equal(everything, altered(images))
    np.testing.assert_array_equal(everything[1:2], altered(images, kinds=["cut_paste"]))
    np.testing.assert_array_equal(everything[1][:5], altered(images[:5])[1])
    assert not np.array_equal(everything[0], altered(images, random_state=1)[0])
    assert (everything[0][0] != everything[0][1]).any()


def test_random_state_that_is_no_int_is_drawn_from_once(images):
    scorer = pseudo_anomaly_scorer(random_state=np.random.RandomState(0))
    recordings = [Recording(), Recording()]
    for recording in recordings:
        scorer(recording, images)
    np.testing.assert_array_equal(*[recording.given[1] for recording in recordings])
    assert pseudo_anomaly_scorer(random_state=None) != pseudo_anomaly_scorer(random_state=None)


def test_many_images_are_altered_a_few_at_a_time():
    recording = Recording()
    images = noise((150, 4, 4, 3), np.uint8)
    pseudo_anomaly_scorer(kinds=["rotation"])(recording, images)
    assert [len(x) for x in recording.given] == [150, 64, 64, 22]
    for image, turned in zip(images, np.concatenate(recording.given[1:]), strict=True):
        assert turned.tobytes() in {np.rot90(image, k).tobytes() for k in (1, 2, 3)}


@pytest.mark.parametrize("form", ["+1 and -1", "1 and 0", "strings"])
def test_labelled_anomalies_are_left_out(X, form):
    y, label = FORMS[form]
    # Not where they are expected: the first sample is an anomaly.
    order = np.arange(26)[::-1]
    recording = Recording()
    scorer = pseudo_anomaly_scorer(kinds=["rotation"], anomaly_label=label)
    score = scorer(recording, X[order], np.asarray(y)[order])
    normal = X[order][6:]
    for image, turned in zip(normal, recording.given[1], strict=True):
        assert turned.tobytes() in {np.rot90(image, k).tobytes() for k in (1, 2, 3)}
    scores = [recording.score_samples(x) for x in (normal, recording.given[1])]
    expected = roc_auc_score(np.repeat([0, 1], 20), -np.concatenate(scores))
    assert score == expected


def test_without_a_normal_image_there_is_no_pseudo_anomaly(images):
    with pytest.raises(ValueError, match=r"labels \[-1\].*no sample is normal"):
        pseudo_anomaly_scorer()(Recording(), images, [-1] * 20)


def test_images_of_all_forms_score_alike(fitted, images, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(20)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    scorer = pseudo_anomaly_scorer()
    expected = scorer(fitted, images)
    for form in (paths, pd.Series(paths), [Image.fromarray(image) for image in images]):
        assert scorer(fitted, form) == pytest.approx(expected, abs=1e-3)
    assert scorer(fitted, images[..., 0]) == pytest.approx(expected, abs=1e-3)


def test_images_of_several_sizes(fitted):
    X = [noise((20 + i, 30, 3), np.uint8, i) for i in range(4)]
    assert 0 <= pseudo_anomaly_scorer()(fitted, X) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_flattened_images_come_back_flattened(images, channels):
    recording = Recording(image_shape=(32, 32, channels))
    recording.score_samples = lambda X: recording.given.append(X) or np.arange(len(X))
    rows = images[..., :channels].reshape(20, -1)
    pseudo_anomaly_scorer(kinds=["rotation"])(recording, rows)
    assert recording.given[1].shape == rows.shape
    turned = recording.given[1][0].reshape(32, 32, channels)
    assert turned.tobytes() in {np.rot90(images[0, ..., :channels], k).tobytes() for k in (1, 2, 3)}


def test_rows_of_a_pipeline_whose_first_step_takes_rows(tiny, images):
    rows = images.reshape(len(images), -1)
    features = ViTFeatures(backbone=tiny, image_shape=(32, 32, 3))
    pipeline = make_pipeline(features, GaussianDensity())
    expected = pseudo_anomaly_scorer()(clone(pipeline).fit(rows), rows)
    on_images = clone(pipeline).set_params(vitfeatures__image_shape=None).fit(images)
    assert pseudo_anomaly_scorer()(on_images, images) == expected


def test_detector_before_which_images_are_prepared(make_detector, images):
    darken = FunctionTransformer(lambda X: X // 2)
    pipeline = make_pipeline(darken, make_detector()).fit(images)
    assert 0.5 < pseudo_anomaly_scorer(kinds=["patch_shuffle"])(pipeline, images) <= 1


def test_pseudo_anomalies_rank_settings_without_any_label(make_detector, images):
    search = GridSearchCV(
        make_detector(),
        {"n_blocks": [1, 2]},
        scoring=pseudo_anomaly_scorer(kinds=["patch_shuffle"]),
        cv=KFold(2, shuffle=True, random_state=0),
        error_score="raise",
    )
    search.fit(images)
    assert (search.cv_results_["mean_test_score"] > 0.9).all()
    assert len(search.best_estimator_.distillation_.students_) in (1, 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kinds": ()}, r"kinds=\(\) is not a sequence of some of \['patch_shuffle', 'cut_paste'"),
        ({"kinds": ["blur"]}, r"kinds=\['blur'\] is not"),
        ({"kinds": "rotation"}, "kinds='rotation' is not"),
        ({"n_patches": 1}, "n_patches=1 is not an integer of at least 2"),
        ({"n_patches": 4.0}, "n_patches=4.0 is not"),
        ({"random_state": -1}, "random_state=-1 is negative"),
    ],
)
def test_pseudo_anomalies_that_cannot_be_made(parameters, message):
    with pytest.raises(ValueError, match=message):
        pseudo_anomaly_scorer(**parameters)


def test_images_too_small_to_be_cut():
    X = [noise((8, 8, 3), np.uint8), noise((3, 8, 3), np.uint8)]
    with pytest.raises(ValueError, match="sample 1 has 3 x 8 pixels, too few for n_patches=4"):
        pseudo_anomaly_scorer()(Recording(), X)
