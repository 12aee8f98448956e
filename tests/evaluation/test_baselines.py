"""Baselines: pipelines that score images, and the score of DN2."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly_vit.evaluation import BASELINES, NeighborDistance, evaluate, make_baseline


@parametrize_with_checks([NeighborDistance(), NeighborDistance(metric="cosine", n_neighbors=1)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_the_score_is_the_mean_distance_to_the_nearest_samples():
    X = np.array([[0.0, 0.0], [0.0, 4.0], [10.0, 0.0]])
    detector = NeighborDistance(n_neighbors=2).fit(X)
    assert detector.score_samples([[0.0, 1.0]]) == pytest.approx(-(1 + 3) / 2)


def test_cosine_does_not_see_lengths():
    detector = NeighborDistance(n_neighbors=1, metric="cosine").fit([[1.0, 0.0], [0.0, 1.0]])
    scores = detector.score_samples([[7.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    assert scores == pytest.approx([0, 2**-0.5 - 1, -1 - 2**-0.5])


def test_fewer_samples_than_neighbours_all_count():
    detector = NeighborDistance(n_neighbors=5).fit([[0.0], [1.0], [3.0]])
    assert detector.score_samples([[0.0]]) == pytest.approx(-4 / 3)


@pytest.mark.parametrize("name", BASELINES)
def test_each_finds_noise_among_discs(name, tiny, images, odd_images):
    pipeline = make_baseline(name, backbone=tiny, random_state=0)
    test = np.concatenate([images[14:], odd_images])
    measured = evaluate(pipeline, images[:14], test, np.repeat([1, -1], [6, len(odd_images)]))
    assert measured["auroc"] > 0.9


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_repeats_the_scores(name, tiny, images):
    scores = [
        make_baseline(name, backbone=tiny, random_state=3).fit(images).score_samples(images)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*scores)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="no baseline 'dn3'; there are 'dn2', 'gaussian', 'ocsvm'"):
        make_baseline("dn3")
