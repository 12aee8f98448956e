"""Fusion: the scale on which each space's scores add up."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skanomaly_vit import ExcessDensity, GaussianDensity, KNNDensity, WhitenedKNNDensity
from skanomaly_vit.detector._fusion import DISCREPANCY_WEIGHT, left_out_scales, score_shards

WEIGHTS = {"pooled": 1.0, "discrepancy": DISCREPANCY_WEIGHT}


@pytest.mark.parametrize("pca_variance", [None, 0.9])
@pytest.mark.parametrize("density", ["gaussian", "knn", "excess", "whitened_knn"])
def test_the_scale_is_that_of_training_images_left_out(
    make_detector, images, density, pca_variance
):
    detector = make_detector(
        views="pooled", fusion="standardized", density=density, pca_variance=pca_variance
    )
    detector.fit(images)
    train = np.delete(np.arange(20), detector.validation_indices_)
    spaces = {"pooled": detector.features_, "discrepancy": detector.distillation_}
    for space, part in spaces.items():
        seen, scorer = part.transform(images)[train].astype(np.float64), detector.density_[space]
        if isinstance(scorer, Pipeline):
            scorer, seen = scorer[-1], scorer[:-1].transform(seen)
        left_out = scorer.score_left_out(seen)
        expected = [left_out.mean(), left_out.std() / WEIGHTS[space]]
        least = 0.5 * np.sqrt(scorer.n_features_in_ / 2) / WEIGHTS[space]
        expected[1] = max(expected[1], least)
        np.testing.assert_allclose(detector.fusion_[space], expected, rtol=1e-9)


def test_a_density_that_leaves_nothing_out_is_scaled_in_sample(make_detector, images):
    density = KernelDensity(bandwidth=9.0)
    detector = make_detector(views="pooled", fusion="standardized", density=density).fit(images)
    train = np.delete(images, detector.validation_indices_, axis=0)
    for space, scores in detector.score_spaces(train).items():
        space = "pooled" if space == "pretrained" else space
        assert np.mean(scores) == pytest.approx(0, abs=1e-3)
        assert np.std(scores) == pytest.approx(WEIGHTS[space], abs=1e-3)


class TwoScores(BaseEstimator):
    """A density of the user, which can leave its samples out."""

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def score_samples(self, X):
        return np.zeros(len(X))

    def score_left_out(self, X):
        return np.where(np.arange(len(X)) % 2, 3.0, 7.0)


def test_a_density_of_the_user_is_asked_for_scores_left_out(make_detector, images):
    detector = make_detector(views="pooled", fusion="standardized", density=TwoScores()).fit(images)
    assert detector.fusion_ == {"pooled": (5.0, 2.0), "discrepancy": (5.0, 4.0)}


@pytest.mark.parametrize("steps", [[], [StandardScaler()]], ids=str)
def test_the_last_step_of_a_pipeline_leaves_images_out(rng, steps):
    rows = {"pooled": rng.normal(size=(40, 3))}
    pipeline = make_pipeline(*steps, KNNDensity(n_neighbors=1)).fit(rows["pooled"])
    scales = left_out_scales({"pooled": pipeline}, [rows])["pooled"]
    alone = KNNDensity(n_neighbors=1).fit(rows["pooled"])
    expected = alone.score_left_out(rows["pooled"])
    assert scales[1] == pytest.approx(expected.std())


class Rounding(TwoScores):
    """Scores that differ by rounding alone."""

    def score_left_out(self, X):
        return 1000.0 + 1e-13 * (np.arange(len(X)) % 2)


def test_rounding_is_no_scale(rng):
    rows = {"pooled": rng.normal(size=(90, 3))}
    assert left_out_scales({"pooled": Rounding()}, [rows])["pooled"][1] == 1.0


def shares(densities, learned, new):
    """Share of each space in the variance of the score of new images."""
    scales = left_out_scales(densities, [learned])
    scores = score_shards(densities, scales, [new])
    variances = {space: values.var() for space, values in scores.items()}
    return {space: value / sum(variances.values()) for space, value in variances.items()}


CONSTANT = {
    "equal errors": (ExcessDensity(), lambda X: np.ones_like(X)),
    "equal rows, Gaussian": (GaussianDensity(regularization=1.0), lambda X: np.ones_like(X)),
    "two copies of each": (KNNDensity(n_neighbors=1), lambda X: np.repeat(X[::2], 2, axis=0)),
    "two copies, whitened": (
        WhitenedKNNDensity(n_neighbors=1),
        lambda X: np.repeat(X[::2], 2, axis=0),
    ),
}


@pytest.mark.parametrize("kind", CONSTANT)
def test_a_space_whose_training_images_score_alike_leaves_room_for_the_other(rng, kind):
    density, make = CONSTANT[kind]
    learned = {"pooled": rng.normal(size=(60, 8)), "discrepancy": rng.normal(size=(60, 10)) + 9}
    learned["discrepancy"] = make(learned["discrepancy"])
    densities = {
        "pooled": GaussianDensity().fit(learned["pooled"]),
        "discrepancy": density.fit(learned["discrepancy"]),
    }
    new = {"pooled": rng.normal(size=(200, 8))}
    new["discrepancy"] = rng.normal(size=(200, 10)) + learned["discrepancy"].mean(axis=0)
    least = 0.5 * np.sqrt(10 / 2)
    assert left_out_scales(densities, [learned])["discrepancy"][1] == least / 0.5
    for share in shares(densities, learned, new).values():
        assert share > 0.01


@pytest.mark.parametrize("density", [GaussianDensity(shrinkage=0.0), KNNDensity(n_neighbors=1)])
def test_a_density_that_is_constant_in_sample_is_weighed_by_what_it_leaves_out(rng, density):
    """As many features as images, or its own nearest neighbour: in sample, rounding is left."""
    learned = {"pooled": rng.normal(size=(9, 12)), "discrepancy": rng.gamma(9.0, size=(9, 5))}
    densities = {
        "pooled": density.fit(learned["pooled"]),
        "discrepancy": ExcessDensity().fit(learned["discrepancy"]),
    }
    assert np.std(density.score_samples(learned["pooled"])) < 1e-5
    new = {"pooled": rng.normal(size=(99, 12)), "discrepancy": rng.gamma(9.0, size=(99, 5))}
    for share in shares(densities, learned, new).values():
        assert share > 0.01
