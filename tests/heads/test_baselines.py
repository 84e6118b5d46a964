"""kNN and nearest class mean: scikit-learn's contract, the artifact's decision, rows from anywhere."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadDescription, load_head
from bottleneck.heads.baselines import KNNHead, NearestMeanHead, knn_arrays, neighbours
from bottleneck.heads.mlp import MLPHead
from bottleneck.samples import ArrayRows


class Blocks:
    """A row reader that gives no array away, and notes the longest block asked for."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.longest = x, x.shape, x.dtype, 0

    def read(self, start, stop):
        self.longest = max(self.longest, stop - start)
        return self.x[start:stop]


@pytest.fixture
def clouds():
    """Three overlapping classes on features of very different scales, one of them constant."""
    generator = np.random.default_rng(0)
    y = np.repeat(["ants", "bees", "개미"], [40, 60, 50])
    x = (
        generator.normal(size=(150, 12))
        + 1.2 * generator.normal(size=(3, 12))[np.unique(y, return_inverse=True)[1]]
    )
    x = x * np.logspace(-2, 2, 12) + 5
    x[:, 7] = 3
    return x.astype(np.float32), y


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("head", [NearestMeanHead(), KNNHead(), KNNHead(k=3)])
def test_scikit_learn_accepts_it(head):
    check_estimator(head, on_skip=None)


def test_nearest_mean_is_the_nearest_centroid(clouds):
    x, y = clouds
    z = np.delete(StandardScaler().fit_transform(x), 7, axis=1)
    expected = NearestCentroid().fit(z, y).predict(z)
    assert (NearestMeanHead().fit(x, y).predict(x) == expected).all()


def test_knn_is_the_vote_of_the_nearest_by_cosine(clouds):
    x, y = clouds
    scaler = StandardScaler().fit(x[::2])
    judge = KNeighborsClassifier(5, metric="cosine").fit(scaler.transform(x[::2]), y[::2])
    head = KNNHead(k=5).fit(x[::2], y[::2])
    prior = [np.mean(y[::2] == name) for name in head.classes_]
    expected = (5 * judge.predict_proba(scaler.transform(x[1::2])) + prior) / 6
    np.testing.assert_allclose(head.predict_proba(x[1::2]), expected, atol=1e-6)


@pytest.mark.parametrize("head", [NearestMeanHead(), KNNHead(), MLPHead(epochs=1)])
def test_features_are_standardised_and_a_constant_one_is_left_at_its_scale(clouds, head):
    x, y = clouds
    head.fit(x, y)
    np.testing.assert_allclose(head.mean_, x.mean(axis=0, dtype=np.float64), rtol=1e-5)
    assert head.scale_[7] == 1
    np.testing.assert_allclose(np.delete(head.scale_, 7), np.delete(x.std(axis=0), 7), rtol=1e-4)


@pytest.mark.parametrize("head", [NearestMeanHead(), KNNHead(k=4)])
def test_the_saved_artifact_decides_exactly_alike(clouds, tmp_path, head):
    x, y = clouds
    head.fit(x[::2], y[::2])
    saved = load_head(head.artifact(HeadDescription(node="bottleneck")).save(tmp_path / "head.safetensors"))
    assert saved.kind == head.kind
    assert np.array_equal(saved.decision(x), head.logits(x))
    assert (np.array(saved.class_names)[saved.predict(x)] == head.predict(x)).all()


@pytest.mark.parametrize("head", [NearestMeanHead(), KNNHead()])
def test_arrays_tensors_and_readers_give_the_same(clouds, head):
    x, y = clouds
    expected = head.fit(x, y).logits(x)
    for rows in (torch.from_numpy(x), Blocks(x), x.astype(np.float64)):
        np.testing.assert_allclose(head.fit(rows, y).logits(rows), expected, rtol=1e-5, atol=1e-5)


def test_a_reader_is_read_in_blocks_of_bounded_size():
    rows = Blocks(np.random.default_rng(0).normal(size=(700, 20_000)).astype(np.float16))
    NearestMeanHead().fit(rows, np.arange(700) % 3).predict(rows)
    assert 0 < rows.longest * 20_000 * 4 <= 8 << 20


def test_a_feature_that_is_not_finite_is_named(clouds):
    x, y = clouds
    x[17, 3] = np.nan
    with pytest.raises(FitError, match="Feature 3 of row 17"):
        KNNHead().fit(Blocks(x), y)
    with pytest.raises(ValueError, match="NaN"):
        KNNHead().fit(x, y)


def test_other_features_are_refused(clouds):
    x, y = clouds
    head = KNNHead().fit(x, y)
    with pytest.raises(ValueError, match="11 features"):
        head.predict(Blocks(x[:, :11]))


def test_a_row_of_means_has_no_direction_and_gets_the_prior(clouds):
    x, y = clouds
    head = KNNHead(k=150).fit(x, y)
    assert head.predict_proba(head.mean_[None])[0] == pytest.approx([4 / 15, 6 / 15, 5 / 15], abs=1e-6)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (30, 5), (399, 19), (400, 20), (10**6, 20)])
def test_the_default_number_of_neighbours(n, k):
    assert neighbours("auto", n) == k


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "many"])
def test_a_strange_number_of_neighbours_is_refused(clouds, k):
    with pytest.raises(ValueError, match="'k' parameter"):
        KNNHead(k=k).fit(*clouds)


def test_knn_of_values_gives_their_mean(clouds):
    """The arrays serve any target: here a regression, by the artifact alone."""
    from bottleneck.heads.artifact import HeadArtifact

    x, _ = clouds
    values = np.arange(150.0)[:, None]
    head = HeadArtifact(
        kind="knn",
        form="knn",
        arrays=knn_arrays(ArrayRows(x), values),
        link="identity",
        target_kind="regression",
        settings={"k": 1},
    )
    np.testing.assert_allclose(head.predict(x), values[:, 0])
