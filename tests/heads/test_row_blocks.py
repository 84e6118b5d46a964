"""Readers of views and of selected rows against the arrays that they stand for."""

import numpy as np
import pytest

from bottleneck.heads.row_blocks import SelectedRows, ViewRows, as_rows
from bottleneck.samples import ArrayRows


@pytest.fixture
def views():
    return np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2)


@pytest.mark.parametrize(("start", "stop"), [(0, 15), (0, 0), (4, 5), (2, 13), (14, 15)])
def test_views_are_rows_one_after_the_other(views, start, stop):
    rows = ViewRows(ArrayRows(views))
    flat = views.reshape(-1, 2)
    assert rows.shape == flat.shape
    assert np.array_equal(rows.read(start, stop), flat[start:stop])
    indices = np.arange(start, stop)[::-1]
    assert np.array_equal(rows.take(indices), flat[indices])


def test_selected_rows_come_in_the_order_of_the_selection(views):
    chosen = np.array([4, 0, 0, 2])
    rows = SelectedRows(ArrayRows(views), chosen)
    assert rows.shape == (4, 3, 2)
    assert np.array_equal(rows.read(1, 4), views[[0, 0, 2]])
    assert np.array_equal(rows.take(np.array([3, 0])), views[[2, 4]])


def test_a_reader_of_views_is_read_as_rows(views):
    assert as_rows(ArrayRows(views)).shape == (15, 2)
    assert as_rows(views[:, 0]).shape == (5, 2)
