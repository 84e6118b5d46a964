"""Copies and outliers by features, beside a search of all pairs."""

import numpy as np
import pytest

from bottleneck.samples import ArrayRows
from bottleneck.studies.audit import images
from bottleneck.studies.audit.images import beyond_fence, centred, near_pairs, neighbourhood, outlier_scores


@pytest.fixture
def features():
    """Two hundred images in five kinds, the last ten of which are copies of the first ten, with noise."""
    draw = np.random.default_rng(0)
    kinds = draw.normal(size=(5, 64)) * 2
    x = 30 + kinds[np.arange(200) % 5] + draw.normal(size=(200, 64))
    x[190:] = x[:10] + draw.normal(size=(10, 64)) * 0.1
    return x.astype(np.float32)


def all_cosines(x):
    unit = x - x.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def test_neighbours_are_those_of_all_pairs(features):
    near = neighbourhood(centred(ArrayRows(features)))
    cosines = all_cosines(features)
    np.fill_diagonal(cosines, -2)
    np.testing.assert_array_equal(near.index[:, 0], cosines.argmax(axis=1))
    np.testing.assert_allclose(1 - near.distance, -np.sort(-cosines, axis=1)[:, :10], atol=1e-5)


def test_copies_are_found_and_images_of_one_kind_are_not(features):
    pairs = near_pairs(neighbourhood(centred(ArrayRows(features))), 0.8, 0.4)
    assert sorted(map(tuple, pairs.tolist())) == [(i, 190 + i) for i in range(10)]


def test_an_image_with_more_copies_than_neighbours_is_found(features):
    features[100:130] = features[100] + np.random.default_rng(1).normal(size=(30, 64)) * 0.01
    pairs = near_pairs(neighbourhood(centred(ArrayRows(features))), 0.8, 0.4)
    assert set(range(100, 130)) <= set(pairs.reshape(-1).tolist())


def test_many_rows_are_compared_by_their_components(features, monkeypatch):
    exact = near_pairs(neighbourhood(centred(ArrayRows(features))), 0.8, 0.4)
    monkeypatch.setattr(images, "EXACT_ROWS", 150)
    monkeypatch.setattr(images, "COMPONENTS", 32)
    monkeypatch.setattr(images, "BLOCK", 60)
    rows = centred(ArrayRows(features))
    assert rows.shape == (200, 32)
    projected = near_pairs(neighbourhood(rows), 0.8, 0.4)
    assert set(map(tuple, projected.tolist())) == set(map(tuple, exact.tolist()))


def test_neighbours_among_some_exclude_the_image_itself(features):
    among = np.arange(50)
    near = neighbourhood(centred(ArrayRows(features)), among)
    assert near.index.max() < 50
    assert not (near.index == np.arange(200)[:, None]).any()
    cosines = all_cosines(features)[:, :50]
    cosines[among, among] = -2
    np.testing.assert_array_equal(near.index[:, 0], cosines.argmax(axis=1))


def test_an_image_like_no_other_is_beyond_the_fence(features):
    features[7] = 30 + np.random.default_rng(5).normal(size=64) * 9
    features[197] = features[150]  # its copy goes, too
    scores = outlier_scores(neighbourhood(centred(ArrayRows(features))))
    assert np.flatnonzero(beyond_fence(scores, 3.0)).tolist() == [7]
    low, high = np.percentile(scores, [25, 75])
    assert scores[7] > high + 3 * (high - low)
