"""Tests of the density estimators: exactness, robustness, and what they refuse."""

import inspect
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpydoc.docscrape import ClassDoc
from scipy.spatial.distance import cdist
from scipy.special import gamma, gammaln
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone, is_outlier_detector
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly_vit import density as density_module
from skanomaly_vit.density import (
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    WhitenedKNNDensity,
)

pytestmark = pytest.mark.filterwarnings("error")

CLASSES = [GaussianDensity, GaussianMixtureDensity, KNNDensity, WhitenedKNNDensity]
# Small enough for the two samples that some tests fit.
ESTIMATORS = [
    GaussianDensity(),
    GaussianDensity(shrinkage="ledoit_wolf"),
    GaussianDensity(shrinkage=0, regularization=1e-3),
    GaussianMixtureDensity(n_components=1, random_state=0),
    GaussianMixtureDensity(n_components=2, covariance_type="tied", random_state=0),
    KNNDensity(n_neighbors=1),
    KNNDensity(n_neighbors=2),
    WhitenedKNNDensity(),
    WhitenedKNNDensity(n_neighbors=1, whitening_exponent=0.25, shrinkage=0.5),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
# Of very different units, as discrepancy features of different blocks are.
UNITS = np.array([1e-5, 1.0, 10.0, 1e3])


@pytest.fixture
def X():
    """(300, 4) correlated features in mixed units."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + 3) * UNITS


@pytest.fixture
def X_mild(X):
    """X in units near enough to each other for scipy, which decomposes the raw covariance."""
    return X / UNITS * [0.1, 1, 10, 100]


def fit_duplicates(estimator, X):
    """Fit, ignoring k-means' warning of fewer distinct samples than components."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        return clone(estimator).fit(X)


def standardized(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


# --- scikit-learn's contract ------------------------------------------------------------------


@parametrize_with_checks(
    [
        *(cls() for cls in CLASSES),
        GaussianDensity(shrinkage="ledoit_wolf", regularization=0.0),
        GaussianDensity(shrinkage=0.5, regularization=0.1),
        GaussianMixtureDensity(n_components=1, n_init=2),
        GaussianMixtureDensity(covariance_type="tied", regularization=1e-3),
        GaussianMixtureDensity(n_components=3, covariance_type="diag", random_state=0),
        GaussianMixtureDensity(covariance_type="spherical", max_iter=200),
        KNNDensity(n_neighbors=1),
        KNNDensity(n_neighbors=3, n_jobs=1),
        KNNDensity(max_samples=10),
        KNNDensity(max_samples=8, subsampling="greedy", random_state=0),
        WhitenedKNNDensity(n_neighbors=1, whitening_exponent=0.25),
        WhitenedKNNDensity(max_samples=8, subsampling="greedy", random_state=0),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", CLASSES)
def test_documented_defaults_are_the_defaults(cls):
    documented = {p.name: p.type.partition("default=")[2] for p in ClassDoc(cls)["Parameters"]}
    real = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    assert documented == {
        name: repr(v).replace("'", '"').replace("1e-06", "1e-6") for name, v in real.items()
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_documented_sections(cls):
    doc = inspect.getdoc(cls)
    sections = re.findall(r"^(\w[\w ]+)\n-+$", doc, flags=re.MULTILINE)
    assert sections == ["Parameters", "Attributes", "See Also", "Notes", "References", "Examples"]


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_are_keyword_only(cls):
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_module_does_not_import_torch():
    code = "import sys, skanomaly_vit.density; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_private_sklearn_helpers_come_from_compat():
    source = inspect.getsource(density_module)
    assert not re.search(r"from sklearn\.\S*\._|from sklearn\S* import _", source)


@every_estimator
def test_is_a_density_estimator(estimator):
    assert get_tags(estimator).estimator_type == "density_estimator"
    assert not is_outlier_detector(estimator)


@every_estimator
def test_scores_are_float64_one_per_sample_and_score_is_their_mean(estimator, X):
    fitted = clone(estimator).fit(X.astype(np.float32))
    scores = fitted.score_samples(X[:7])
    assert scores.shape == (7,)
    assert scores.dtype == np.float64
    assert fitted.score(X[:7]) == pytest.approx(scores.mean())
    assert type(fitted.score(X[:7])) is float


@every_estimator
def test_higher_near_the_mean_than_far_out(estimator, X):
    scores = (
        clone(estimator)
        .fit(X)
        .score_samples(X.mean(axis=0) + np.array([[0.1], [3], [10], [1000], [1e6]]) * X.std(axis=0))
    )
    assert (np.diff(scores) < 0).all()


@every_estimator
def test_separates_shifted_samples(estimator, X):
    novel = X[150:] + 4 * X.std(axis=0) * [1, -1, 1, -1]
    scores = clone(estimator).fit(X[:150]).score_samples(np.vstack([X[150:], novel]))
    assert roc_auc_score(np.repeat([1, 0], 150), scores) > 0.95


def test_grid_search_selects_by_log_density(X):
    two_classes = np.vstack([X, X + 20 * UNITS])
    search = GridSearchCV(
        make_pipeline(GaussianMixtureDensity(random_state=0)),
        {"gaussianmixturedensity__n_components": [1, 2]},
    ).fit(np.random.default_rng(0).permutation(two_classes))
    assert search.best_params_ == {"gaussianmixturedensity__n_components": 2}


def test_works_behind_a_transformer_with_collinear_output(X):
    pipeline = make_pipeline(PolynomialFeatures(3), GaussianDensity()).fit(X)
    assert np.isfinite(pipeline.score_samples(X)).all()


# --- GaussianDensity --------------------------------------------------------------------------


def test_gaussian_equals_scipy_in_input_units(X_mild):
    fitted = GaussianDensity(regularization=0).fit(X_mild)
    expected = multivariate_normal(X_mild.mean(axis=0), np.cov(X_mild.T, bias=True))
    np.testing.assert_allclose(fitted.score_samples(X_mild), expected.logpdf(X_mild), rtol=1e-6)
    np.testing.assert_allclose(fitted.location_, X_mild.mean(axis=0))
    np.testing.assert_allclose(fitted.scale_, X_mild.std(axis=0))
    np.testing.assert_allclose(fitted.covariance_, np.cov(X_mild.T, bias=True))


@pytest.mark.parametrize("shrinkage", ["auto", "ledoit_wolf", 0.0, 0.3, 1])
@pytest.mark.parametrize("n_samples", [3, 15, 300])
def test_gaussian_attributes_determine_the_scores(X_mild, shrinkage, n_samples):
    fitted = GaussianDensity(shrinkage=shrinkage, regularization=1e-2).fit(X_mild[:n_samples])
    expected = multivariate_normal(fitted.location_, fitted.covariance_)
    np.testing.assert_allclose(fitted.score_samples(X_mild), expected.logpdf(X_mild), rtol=1e-6)


def test_gaussian_default_regularization_barely_moves_the_scores(X):
    exact = GaussianDensity(regularization=0).fit(X).score_samples(X)
    np.testing.assert_allclose(GaussianDensity().fit(X).score_samples(X), exact, rtol=1e-3)


def test_gaussian_regularization_is_added_to_standardised_variances(X):
    covariance = GaussianDensity(regularization=0.25).fit(X).covariance_
    expected = np.cov(X.T, bias=True) + 0.25 * np.diag(X.var(axis=0))
    np.testing.assert_allclose(covariance, expected)


def test_gaussian_ledoit_wolf_equals_sklearn(X):
    fitted = GaussianDensity(shrinkage="ledoit_wolf", regularization=0).fit(X[:12])
    covariance, shrinkage = ledoit_wolf(standardized(X[:12]))
    assert 0.01 < shrinkage < 1
    assert fitted.shrinkage_ == pytest.approx(shrinkage)
    std = X[:12].std(axis=0)
    np.testing.assert_allclose(fitted.covariance_, covariance * np.outer(std, std))


def test_gaussian_float_shrinkage_equals_sklearn(X):
    fitted = GaussianDensity(shrinkage=0.3, regularization=0).fit(X)
    expected = shrunk_covariance(empirical_covariance(standardized(X)), shrinkage=0.3)
    assert fitted.shrinkage_ == 0.3
    np.testing.assert_allclose(fitted.covariance_, expected * np.outer(X.std(0), X.std(0)))


def test_gaussian_full_shrinkage_means_independent_features(X):
    fitted = GaussianDensity(shrinkage=1.0, regularization=0).fit(X)
    expected = norm(X.mean(axis=0), X.std(axis=0)).logpdf(X).sum(axis=1)
    np.testing.assert_allclose(fitted.score_samples(X), expected)


def test_gaussian_auto_shrinks_below_five_samples_per_feature(X):
    ledoit_wolf_density = GaussianDensity(shrinkage="ledoit_wolf")
    assert GaussianDensity().fit(X[:20]).shrinkage_ == 0
    assert ledoit_wolf_density.fit(X[:20]).shrinkage_ > 0
    assert GaussianDensity().fit(X[:19]).shrinkage_ == ledoit_wolf_density.fit(X[:19]).shrinkage_


def test_gaussian_auto_generalises_better_than_maximum_likelihood_on_few_samples():
    normal = np.random.default_rng(0).normal(size=(1060, 50))
    auto, mle = (GaussianDensity(shrinkage=s).fit(normal[:60]) for s in ("auto", 0))
    assert auto.score(normal[60:]) > mle.score(normal[60:]) + 10


def test_gaussian_constant_feature_leaves_ledoit_wolf_alone(X):
    few = X[:12]
    with_constant = np.column_stack([few, np.full(12, 0.1)])
    density = GaussianDensity(shrinkage="ledoit_wolf")
    expected = clone(density).fit(few).shrinkage_
    assert density.fit(with_constant).shrinkage_ == pytest.approx(expected)


def test_gaussian_of_constant_features_only_has_no_shrinkage():
    assert GaussianDensity(shrinkage="ledoit_wolf").fit(np.ones((4, 3))).shrinkage_ == 0


def test_gaussian_with_fewer_samples_than_features_still_ranks():
    rng = np.random.default_rng(0)
    fitted = GaussianDensity().fit(rng.normal(size=(10, 50)))
    near, far = fitted.score_samples(rng.normal(size=(2, 50)) * [[1], [5]])
    assert near > far


@pytest.mark.parametrize(
    "singular",
    [
        pytest.param(lambda X: np.column_stack([X, X[:, 0]]), id="duplicated"),
        pytest.param(lambda X: np.column_stack([X, X @ [1, 2, 3, 4]]), id="dependent"),
        pytest.param(lambda X: np.column_stack([X, np.full(len(X), 0.1)]), id="constant"),
        pytest.param(lambda X: X[:3], id="few samples"),
        pytest.param(lambda X: np.ones((2, 1)), id="one constant"),
    ],
)
def test_gaussian_singular_covariance_needs_regularization(X, singular):
    X = singular(X)
    with pytest.raises(
        ValueError,
        match=r"singular covariance of \d features with shrinkage=0.0 "
        r"and regularization=0.*Pass a larger regularization",
    ):
        GaussianDensity(shrinkage=0.0, regularization=0).fit(X)
    scores = GaussianDensity(shrinkage=0.0).fit(X).score_samples(X)
    assert np.isfinite(scores).all()


def test_gaussian_detects_a_broken_correlation():
    a = np.random.default_rng(0).normal(size=500)
    fitted = GaussianDensity().fit(np.column_stack([a, a]))
    along, across = fitted.score_samples([[1, 1], [1, -1]])
    assert along - across > 1e5


# --- GaussianMixtureDensity -------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_mixture_equals_sklearn_on_standardised_features(X, covariance_type):
    # As many clusters as components: rounding does not decide between two optima.
    X = np.vstack([X, X + 30 * UNITS, X - 30 * UNITS])
    fitted = GaussianMixtureDensity(
        covariance_type=covariance_type,
        n_components=3,
        regularization=1e-4,
        n_init=2,
        max_iter=150,
        random_state=7,
    ).fit(X)
    reference = GaussianMixture(
        3, covariance_type=covariance_type, reg_covar=1e-4, n_init=2, max_iter=150, random_state=7
    ).fit(standardized(X))
    expected = reference.score_samples(standardized(X)) - np.log(X.std(axis=0)).sum()
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-6)
    assert isinstance(fitted.mixture_, GaussianMixture)


def test_mixture_of_one_is_the_gaussian(X):
    mixture = GaussianMixtureDensity(n_components=1).fit(X)
    gaussian = GaussianDensity(shrinkage=0).fit(X)
    np.testing.assert_allclose(mixture.score_samples(X), gaussian.score_samples(X), rtol=1e-6)


def test_mixture_sees_the_gap_between_two_classes(X):
    X = np.vstack([X - 30 * UNITS, X + 30 * UNITS])
    gap = X.mean(axis=0, keepdims=True)
    mixture = GaussianMixtureDensity(random_state=0).fit(X)
    gaussian = GaussianDensity().fit(X)
    assert mixture.score_samples(gap)[0] < mixture.score_samples(X).min()
    assert gaussian.score_samples(gap)[0] > gaussian.score_samples(X).max()


def test_mixture_repeats_with_a_random_state(X):
    first, second = (
        GaussianMixtureDensity(n_components=5, random_state=3).fit(X).score_samples(X)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_mixture_refuses_more_components_than_samples(X):
    message = (
        r"GaussianMixtureDensity found n_components=4 but n_samples=3 in X\. "
        r"Pass n_components <= 3, or at least 4 samples\."
    )
    with pytest.raises(ValueError, match=message):
        GaussianMixtureDensity(n_components=4).fit(X[:3])


def test_mixture_as_many_components_as_samples(X):
    fitted = GaussianMixtureDensity(n_components=3, random_state=0).fit(X[:3])
    assert np.isfinite(fitted.score_samples(X)).all()


def test_mixture_singular_component_names_our_parameter():
    X = np.column_stack([np.arange(10.0), np.arange(10.0)])
    with pytest.raises(ValueError, match=r"shape \(10, 2\).*Pass a larger regularization"):
        GaussianMixtureDensity(n_components=1, regularization=0).fit(X)


# --- KNNDensity -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_features", [1, 2, 3, 4])
@pytest.mark.parametrize("n_neighbors", [1, 5, 40])
def test_knn_equals_the_formula(X, n_features, n_neighbors):
    train, test = X[:200, :n_features], X[200:, :n_features]
    mean, std = train.mean(axis=0), train.std(axis=0)
    distances = np.sort(cdist((test - mean) / std, (train - mean) / std), axis=1)
    ball = np.pi ** (n_features / 2) / gamma(n_features / 2 + 1)
    volume = ball * distances[:, n_neighbors - 1] ** n_features * std.prod()
    fitted = KNNDensity(n_neighbors=n_neighbors).fit(train)
    expected = np.log(n_neighbors / 200 / volume)
    np.testing.assert_allclose(fitted.score_samples(test), expected, rtol=1e-9)


def test_knn_unit_ball_of_one_two_and_three_dimensions():
    # Two samples at -1 and 1 in every feature: the mean is sqrt(d) away from both, scale 1.
    for n_features, ball in [(1, 2), (2, np.pi), (3, 4 * np.pi / 3)]:
        corners = np.array([[-1.0], [1.0]]).repeat(n_features, axis=1)
        score = KNNDensity(n_neighbors=1).fit(corners).score_samples(np.zeros((1, n_features)))
        volume = ball * n_features ** (n_features / 2)
        assert score[0] == pytest.approx(np.log(1 / 2 / volume))


def test_knn_approaches_a_known_density():
    samples = np.random.default_rng(0).normal(5.0, 0.01, size=(20_000, 1))
    grid = np.linspace(4.98, 5.02, 401)
    log_density = KNNDensity(n_neighbors=300).fit(samples).score_samples(grid[:, None])
    truth = norm(5.0, 0.01)
    np.testing.assert_allclose(log_density, truth.logpdf(grid), atol=0.25)
    integral = np.trapezoid(np.exp(log_density), grid)
    assert integral == pytest.approx(truth.cdf(5.02) - truth.cdf(4.98), rel=0.02)


def test_knn_duplicates_are_finite_and_most_normal(X):
    X = np.vstack([X, np.tile(X[0], (10, 1))])
    scores = KNNDensity().fit(X).score_samples(X)
    assert np.isfinite(scores).all()
    assert scores[0] == scores.max()


@pytest.mark.parametrize("n_features", [4, 200])
def test_knn_duplicates_all_score_the_floor(n_features):
    # In 200 features scikit-learn searches by matrix products, whose rounding leaves distances
    # of about 1e-7 between equal points; times 200 in the log, they must not show.
    X = np.random.default_rng(0).normal(size=(50, n_features))
    fitted = KNNDensity(n_neighbors=1).fit(X)
    volume = n_features / 2 * np.log(np.pi) - gammaln(n_features / 2 + 1)
    radius = n_features * np.log(1e-6 * np.sqrt(n_features))
    expected = -np.log(50) - volume - radius - np.log(X.std(axis=0)).sum()
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-12)


def test_knn_n_jobs_reaches_the_search(X):
    fitted = KNNDensity(n_jobs=2).fit(X)
    assert fitted.neighbors_.n_jobs == 2
    np.testing.assert_allclose(fitted.score_samples(X), KNNDensity().fit(X).score_samples(X))


def test_knn_scores_do_not_follow_parameters_set_after_fit(X):
    fitted = KNNDensity().fit(X)
    before = fitted.score_samples(X)
    np.testing.assert_array_equal(fitted.set_params(n_neighbors=9).score_samples(X), before)


def test_knn_refuses_more_neighbours_than_samples(X):
    message = (
        r"KNNDensity found n_neighbors=5 but n_samples=4 in X\. "
        r"Pass n_neighbors <= 4, or at least 5 samples\."
    )
    with pytest.raises(ValueError, match=message):
        KNNDensity().fit(X[:4])
    assert np.isfinite(KNNDensity(n_neighbors=4).fit(X[:4]).score_samples(X)).all()


# --- what all refuse --------------------------------------------------------------------------


@every_estimator
def test_one_sample_is_refused(estimator):
    message = rf"{type(estimator).__name__} found n_samples=1 in X .*Pass at least 2 samples"
    with pytest.raises(ValueError, match=message):
        clone(estimator).fit([[1.0, 2.0]])


@every_estimator
def test_values_whose_squares_overflow_are_refused(estimator):
    X = np.arange(12.0).reshape(4, 3)
    X[2, 1] = -1e200
    with pytest.raises(ValueError, match=r"found X\[2, 1\] = -1e\+200.*in a larger unit"):
        clone(estimator).fit(X)


@every_estimator
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_not_finite_are_refused(estimator, X, bad):
    fitted = clone(estimator).fit(X)
    X[3, 2] = bad
    for method in (fitted.fit, fitted.score_samples):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            method(X)


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (GaussianDensity(shrinkage="oas"), "shrinkage"),
        (GaussianDensity(shrinkage=1.1), "shrinkage"),
        (GaussianDensity(shrinkage=-0.1), "shrinkage"),
        (GaussianDensity(regularization=-1e-6), "regularization"),
        (GaussianMixtureDensity(n_components=0), "n_components"),
        (GaussianMixtureDensity(covariance_type="round"), "covariance_type"),
        (GaussianMixtureDensity(regularization=-1), "regularization"),
        (GaussianMixtureDensity(n_init=0), "n_init"),
        (GaussianMixtureDensity(max_iter=0), "max_iter"),
        (GaussianMixtureDensity(random_state="0"), "random_state"),
        (KNNDensity(n_neighbors=0), "n_neighbors"),
        (KNNDensity(n_neighbors=2.5), "n_neighbors"),
        (KNNDensity(n_jobs="all"), "n_jobs"),
        (KNNDensity(max_samples=0), "max_samples"),
        (KNNDensity(subsampling="farthest"), "subsampling"),
        (WhitenedKNNDensity(n_neighbors=0), "n_neighbors"),
        (WhitenedKNNDensity(whitening_exponent=0.6), "whitening_exponent"),
        (WhitenedKNNDensity(whitening_exponent=-0.1), "whitening_exponent"),
        (WhitenedKNNDensity(shrinkage="oas"), "shrinkage"),
    ],
    ids=repr,
)
def test_bad_parameters_are_refused(X, estimator, name):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of {type(estimator).__name__}"):
        estimator.fit(X)


FAILING_FITS = pytest.mark.parametrize(
    ("estimator", "bad_X"),
    [
        (GaussianDensity(shrinkage=0, regularization=0), np.ones((9, 4))),
        (GaussianMixtureDensity(n_components=5, random_state=0), np.eye(4)),
        (KNNDensity(), np.eye(4)),
        (WhitenedKNNDensity(n_neighbors=5), np.eye(4)),
        (WhitenedKNNDensity(shrinkage=0.0, regularization=0.0), np.eye(4)),
    ],
    ids=repr,
)


@FAILING_FITS
def test_failed_fit_is_not_fitted(estimator, bad_X):
    estimator = clone(estimator)
    with pytest.raises(ValueError, match="Pass"):
        estimator.fit(bad_X)
    with pytest.raises(NotFittedError):
        estimator.score_samples(bad_X)


@FAILING_FITS
def test_failed_refit_keeps_the_scores(estimator, bad_X, X):
    estimator = clone(estimator).fit(X)
    before = estimator.score_samples(X)
    with pytest.raises(ValueError, match="Pass"):
        estimator.fit(bad_X)
    np.testing.assert_array_equal(estimator.score_samples(X), before)


# --- any finite input -------------------------------------------------------------------------


@every_estimator
def test_two_samples(estimator, X):
    assert np.isfinite(fit_duplicates(estimator, X[:2]).score_samples(X)).all()


@every_estimator
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6 / 3, 1e-300, 1e100 / 3])
def test_constant_feature_has_scale_one_and_no_say(estimator, X, constant):
    with_constant = np.column_stack([np.full(len(X), constant), X])
    fitted = clone(estimator).fit(with_constant)
    if abs(constant) < 1e12:
        assert fitted.scale_[0] == 1
    # All training samples agree in the constant feature: their order is that of the others.
    alone = clone(estimator).fit(X).score_samples(X)
    found = fitted.score_samples(with_constant)
    if isinstance(estimator, KNNDensity | WhitenedKNNDensity):
        found *= 4 / 5  # log r is multiplied by n_features
    difference = found - alone
    np.testing.assert_allclose(difference, difference[0], atol=1e-3)


def test_variance_made_of_rounding_counts_as_constant(X):
    noisy = np.where(np.arange(len(X)) % 2, 0.1, np.nextafter(0.1, 1))
    assert GaussianDensity().fit(np.column_stack([X, noisy])).scale_[-1] == 1


def test_tiny_but_real_variance_is_kept():
    X = np.random.default_rng(0).normal(1.0, 1e-9, size=(50, 1))
    assert GaussianDensity().fit(X).scale_[0] == pytest.approx(X.std())


@every_estimator
def test_scoring_the_largest_floats(estimator, X):
    largest = np.finfo(np.float64).max
    fitted = clone(estimator).fit(X)
    # One at a time: scikit-learn's own check for NaN sums X and would meet inf - inf.
    above, below, centre = (fitted.score([[v] * 4]) for v in (largest, -largest, 0.0))
    assert np.isfinite([above, below]).all()
    assert centre > max(above, below)


@st.composite
def finite_data(draw):
    """(n, d) with n from 2 and d from 1: any rank, units from 1e-8 to 1e8, constants, copies."""
    n, d = draw(st.integers(2, 8)), draw(st.integers(1, 12))
    values = st.floats(-100, 100) | st.sampled_from([0.0, 1.0])
    X = draw(arrays(np.float64, (n, d), elements=values))
    units = draw(arrays(np.float64, d, elements=st.sampled_from([1e-8, 1e-3, 1.0, 1e8])))
    offset = draw(st.sampled_from([0.0, 0.1, -1e5]))
    copied = draw(arrays(np.int64, d, elements=st.integers(0, d - 1)))
    return ((X + offset) * units)[:, copied]


@every_estimator
@settings(max_examples=60, deadline=None)
@given(X=finite_data())
def test_any_finite_input_has_finite_scores(estimator, X):
    fitted = fit_duplicates(estimator, X)
    queries = np.vstack([X, np.zeros_like(X[:1]), X * 1e3, -X - 1e9])
    assert np.isfinite(fitted.score_samples(queries)).all()
    assert (fitted.scale_ > 0).all()


@every_estimator
@settings(max_examples=60, deadline=None)
@given(X=arrays(np.float64, (6, 3), elements=st.floats(-1e140, 1e140)))
def test_any_finite_magnitude_has_finite_scores(estimator, X):
    assert np.isfinite(fit_duplicates(estimator, X).score_samples(X)).all()


@every_estimator
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    factors=arrays(np.float64, 3, elements=st.floats(-8, 8)),
    signs=arrays(np.float64, 3, elements=st.sampled_from([-1.0, 1.0])),
    shifts=arrays(np.float64, 3, elements=st.floats(-10, 10)),
)
def test_rescaling_a_feature_shifts_all_scores_alike(estimator, seed, factors, signs, shifts):
    X = np.random.default_rng(seed).normal(size=(40, 3))
    units = signs * 10.0**factors
    rescaled = (X + shifts) * units
    before = clone(estimator).fit(X[:30]).score_samples(X)
    after = clone(estimator).fit(rescaled[:30]).score_samples(rescaled)
    expected = before - np.log(np.abs(units)).sum()
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n_samples=st.integers(2, 30), n_features=st.integers(1, 8))
def test_more_shrinkage_means_weaker_correlations(seed, n_samples, n_features):
    X = np.random.default_rng(seed).normal(size=(n_samples, n_features))
    assume((X.std(axis=0) > 1e-3).all())
    covariances = [GaussianDensity(shrinkage=s).fit(X).covariance_ for s in (0.0, 0.4, 1.0)]
    off_diagonal = [np.abs(c - np.diag(np.diag(c))).sum() for c in covariances]
    assert (np.diff(off_diagonal) <= 1e-12).all()
    np.testing.assert_allclose(off_diagonal[2], 0, atol=1e-12)
    for covariance in covariances:
        np.testing.assert_allclose(covariance.diagonal(), covariances[0].diagonal())


def test_standardisation_is_that_of_standard_scaler(X):
    with_constant = np.column_stack([X, np.full(len(X), 0.1)])
    scaler = StandardScaler().fit(with_constant)
    fitted = GaussianDensity().fit(with_constant)
    np.testing.assert_allclose(fitted.location_, scaler.mean_)
    np.testing.assert_allclose(fitted.scale_, scaler.scale_)
