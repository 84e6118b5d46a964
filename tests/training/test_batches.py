"""Batches: every sample once an epoch, the same order for the same seed, in memory or from the disk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.errors import FitError
from bottleneck.remote.urls import allow, allowed
from bottleneck.training.batches import Batches
from tests.helpers.tiny_training import CountedRows, blobs


def labelled_rows(n, M=1, D=3):
    """Samples whose rows hold their image's number, so that a mixed-up row shows."""
    rows, samples = blobs(n=n, D=D, M=M, P=1)
    rows.array[:] = np.arange(n * M)[:, None]
    return rows, samples


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    M=st.integers(1, 3),
    size=st.integers(1, 50),
    memory=st.sampled_from([1, 400, 5000, 1 << 20]),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_sample_once_with_its_own_rows(n, M, size, memory, epoch):
    rows, samples = labelled_rows(n, M)
    batches = Batches(rows, samples, size, memory=memory)
    seen = list(batches.epoch(epoch))
    assert len(seen) == batches.steps
    images = torch.cat([batch.rows[:, :, 0] for batch in seen]).numpy().astype(int)
    assert sorted(map(tuple, images)) == sorted(map(tuple, samples.image))
    of_image = {tuple(image): i for i, image in enumerate(samples.image)}
    order = [of_image[tuple(image)] for image in images]
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in seen]), samples.labels[order])
    np.testing.assert_allclose(
        torch.cat([batch.covariates for batch in seen]), samples.covariates[order], rtol=1e-6
    )
    lengths = [len(batch) for batch in seen]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_what_the_user_allows_holds_where_rows_are_read_ahead(monkeypatch):
    """Rows of live views are read from images, which a server may have redirected."""
    rows, samples = labelled_rows(70)
    seen, take = [], rows.take
    monkeypatch.setattr(rows, "take", lambda images: (seen.append(allowed()), take(images))[1])
    with allow(remote=True):
        list(Batches(rows, samples, 8, memory=200).epoch(0))
    assert len(seen) > 1
    assert set(seen) == {(False, True)}


@pytest.mark.parametrize("memory", [200, 1 << 20])
def test_the_rest_of_an_epoch_is_the_same_from_any_step(memory):
    rows, samples = labelled_rows(70)
    whole = [batch.labels for batch in Batches(rows, samples, 8, memory=memory).epoch(2)]
    rest = [batch.labels for batch in Batches(rows, samples, 8, memory=memory).epoch(2, first_step=4)]
    assert len(rest) == len(whole) - 4
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("memory", [2000, 1 << 20])
def test_epochs_differ_and_seeds_differ(memory):
    rows, samples = labelled_rows(500)
    batches = Batches(rows, samples, 8, memory=memory)
    other = Batches(rows, samples, 8, memory=memory, seed=1)
    assert not np.array_equal(batches.order(1), batches.order(2))
    assert not np.array_equal(batches.order(1), other.order(1))


def test_rows_that_fit_are_read_once():
    rows, samples = labelled_rows(50)
    batches = Batches(rows, samples, 8)
    for epoch in range(3):
        list(batches.epoch(epoch))
    assert rows.reads == [50]


def test_rows_that_do_not_fit_are_read_within_the_memory_given():
    rows, samples = labelled_rows(400, D=16)
    memory = 64 * 64  # bytes: 64 rows, so 32 in use and 32 being read
    list(Batches(rows, samples, 8, memory=memory).epoch(0))
    assert max(rows.reads) <= 32
    assert sum(rows.reads) == 400


def test_reading_in_chunks_still_mixes_the_samples():
    rows, samples = labelled_rows(2000, D=16)
    batches = Batches(rows, samples, 20, memory=64 * 800)
    places = np.argsort(batches.order(0))
    assert abs(np.corrcoef(np.arange(2000), places)[0, 1]) < 0.3
    first = next(iter(batches.epoch(0)))
    assert np.ptp(first.rows[:, 0, 0].numpy()) > 200


def test_unshuffled_batches_keep_the_order():
    rows, samples = labelled_rows(33)
    batches = Batches(rows, samples, 10, shuffle=False, memory=100)
    images = torch.cat([batch.rows[:, 0, 0] for batch in batches.epoch(0)])
    np.testing.assert_array_equal(images, np.arange(33))


@pytest.mark.parametrize("memory", [50, 1 << 20])
def test_an_epoch_draws_one_view_of_each_image(memory):
    _, samples = labelled_rows(60)
    views = np.arange(60)[:, None] * 10.0 + np.arange(4)
    batches = Batches(CountedRows(views[..., None]), samples, 8, memory=memory, draw_views=True)
    drawn = [
        torch.cat([b.rows.flatten() for b in batches.epoch(epoch)]).sort()[0].numpy() for epoch in (1, 2, 1)
    ]
    np.testing.assert_array_equal(drawn[0] // 10, np.arange(60))
    assert set(np.unique(drawn[0] % 10)) == {0, 1, 2, 3}
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_no_samples_is_an_error():
    rows, samples = labelled_rows(3)
    with pytest.raises(FitError, match="no labelled samples"):
        Batches(rows, type(samples)(samples.image[:0], samples.covariates[:0], samples.labels[:0]), 8)
