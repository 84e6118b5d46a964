"""Nearest rows and look-alikes, against all pairs computed at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.errors import FitError
from bottleneck.samples import ArrayRows
from bottleneck.studies.similar import neighbours
from bottleneck.studies.similar.neighbours import NONE, Groups, look_alikes, nearest


def cosines(a, b):
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b)
    )
    return a @ b.T


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows, so that every border is crossed."""
    monkeypatch.setattr(neighbours, "QUERY_BYTES", 7 * 5 * 4)
    monkeypatch.setattr(neighbours, "CELLS", 7 * 3)
    monkeypatch.setattr(neighbours, "JOINED", 6)
    monkeypatch.setattr(neighbours, "block_size", lambda width, size=11 * 5 * 4: size // (4 * width))


@pytest.mark.parametrize("count", [1, 4, 59])
def test_the_nearest_are_those_of_all_pairs(rows, small_blocks, count):
    expected = cosines(rows, rows)
    np.fill_diagonal(expected, -np.inf)
    order = np.argsort(-expected, axis=1)[:, :count]
    index, cosine = nearest(ArrayRows(rows), ArrayRows(rows), count, np.arange(60))
    assert np.array_equal(index, order)
    np.testing.assert_allclose(cosine, np.take_along_axis(expected, order, 1), atol=1e-6)


def test_queries_from_elsewhere_may_find_every_row(rows, small_blocks):
    queries = rows[[3, 8]] * 7
    index, cosine = nearest(ArrayRows(rows), ArrayRows(queries), 100, np.array([NONE, 8]))
    assert (index[0, 0], index.shape) == (3, (2, 60))
    assert cosine[0, 0] == pytest.approx(1)
    assert 8 not in index[1]
    assert (index[1, -1], cosine[1, -1]) == (NONE, -np.inf)


def test_every_pair_is_counted_as_work_once(rows, small_blocks):
    done = []
    nearest(ArrayRows(rows), ArrayRows(rows[:9]), 2, np.arange(9), done.append)
    assert sum(done) == 9 * 60


def test_rows_of_zeros_and_of_any_size_have_cosines():
    rows = np.array([[0, 0], [1e-30, 0], [1e30, 1e30], [0, 5]], np.float32)
    index, cosine = nearest(ArrayRows(rows), ArrayRows(rows), 3, np.arange(4))
    assert cosine[0].tolist() == [0, 0, 0]
    assert index[1, 0] == 2
    assert cosine[1, 0] == pytest.approx(0.5**0.5)


def test_a_feature_that_is_not_finite_is_named(rows):
    rows[12, 3] = np.inf
    with pytest.raises(FitError, match="Feature 3 of row 12"):
        nearest(ArrayRows(rows), ArrayRows(rows), 1, np.arange(60))


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
def test_look_alikes_are_connected_components(rows, small_blocks, threshold):
    near = cosines(rows, rows) >= threshold
    reach = near.copy()
    for _ in range(60):
        reach = reach | (reach.astype(int) @ near > 0)
    group, pairs = look_alikes(ArrayRows(rows), threshold)
    assert np.array_equal(group, reach.argmax(axis=1))
    assert pairs == (near.sum() - 60) // 2


def test_copies_are_look_alikes_at_a_threshold_of_one():
    rows = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    rows[25] = rows[4]
    group, pairs = look_alikes(ArrayRows(rows), 1.0)
    assert (group[25], pairs) == (4, 1)
    assert len(np.unique(group)) == 39


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(*[st.integers(0, 19)] * 2), max_size=8), max_size=6))
def test_joined_sets_are_those_of_one_pair_at_a_time(calls):
    groups, expected = Groups(20), list(range(20))
    for pairs in calls:
        if pairs:
            groups.join(*np.array(pairs).T)
        for a, b in pairs:
            least, other = sorted((expected[a], expected[b]))
            expected = [least if name == other else name for name in expected]
    assert groups.roots(np.arange(20)).tolist() == expected
