"""The scores against direct evaluations of their papers' formulas, known cases and invariances."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KNeighborsClassifier

from bottleneck.errors import FitError
from bottleneck.studies.rank import scores
from bottleneck.studies.rank.scores import h_score, knn_accuracy, leep, logme, score


class Reader:
    """Rows that are handed out only in ranges, as a cache on disk does."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def read(self, start, stop):
        return self.rows[start:stop]


def problem(N=60, D=7, K=3, seed=0, shift=0.5):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(K), rng.integers(0, K, N - K)])
    return rng.normal(size=(N, D)) + shift * rng.normal(size=(K, D))[labels] + 0.3, labels


def paper_evidence(F, y, alpha, beta):
    """LogME's equation 2 as printed."""
    N, D = F.shape
    A = alpha * np.eye(D) + beta * F.T @ F
    m = beta * np.linalg.solve(A, F.T @ y)
    residual = F @ m - y
    return (
        N / 2 * np.log(beta)
        + D / 2 * np.log(alpha)
        - N / 2 * np.log(2 * np.pi)
        - beta / 2 * residual @ residual
        - alpha / 2 * m @ m
        - np.linalg.slogdet(A)[1] / 2
    )


def paper_logme(F, labels):
    """Equation 2 maximised by a general optimiser, as far as its determinant can be trusted."""
    best = []
    for k in np.unique(labels):
        y = (labels == k).astype(float)
        loss = lambda at, y=y: -paper_evidence(F, y, *np.exp(at))  # noqa: E731
        starts = [(0.0, 0.0), (3.0, 1.0), (-3.0, 2.0), (6.0, 2.0)]
        bounds = [(-18.0, 18.0)] * 2
        found = [minimize(loss, s, method="Nelder-Mead", bounds=bounds, tol=1e-11).fun for s in starts]
        best.append(-min(found))
    return np.mean(best) / len(F)


@pytest.mark.parametrize(("N", "D"), [(60, 7), (30, 12), (15, 24)])
def test_logme_is_the_papers_maximal_evidence(N, D):
    rows, labels = problem(N, D)
    assert logme(rows, labels) == pytest.approx(paper_logme(rows, labels), abs=1e-6)


def test_logme_prefers_features_that_tell_the_classes():
    rows, labels = problem(shift=0.0)
    told, _ = problem(shift=4.0)
    assert logme(told, labels) > logme(rows, labels)


def test_logme_of_features_without_signal_is_that_of_no_weights():
    """Features orthogonal to every target: the evidence is that of y ~ N(0, 1/β) alone."""
    labels = np.repeat([0, 1], 20)
    rows = np.tile([[1.0], [-1.0]], (20, 1))
    expected = -0.5 * (np.log(2 * np.pi * 0.5) + 1)  # half of the entries of each column are 1
    assert logme(rows, labels) == pytest.approx(expected, abs=1e-6)


def test_h_score_is_the_papers_trace():
    rows, labels = problem(200, 9, 4)
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(4)])[labels]
    expected = np.trace(np.linalg.inv(np.cov(rows.T)) @ np.cov(means.T))
    assert h_score(rows, labels, shrinkage=False) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("N", "D"), [(200, 9), (20, 50)])
def test_shrunk_h_score_is_the_papers_trace(N, D):
    rows, labels = problem(N, D, 4)
    fitted = LedoitWolf().fit(rows)
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(4)])[labels]
    between = (1 - fitted.shrinkage_) * np.cov(means.T, bias=True)
    expected = np.trace(np.linalg.inv(fitted.covariance_) @ between)
    assert h_score(rows, labels) == pytest.approx(expected, abs=1e-6)


def test_h_score_of_features_that_are_the_label_is_one_less_than_the_classes():
    labels = np.arange(50) % 5
    assert h_score(np.eye(5)[labels], labels, shrinkage=False) == pytest.approx(4.0, abs=1e-9)


def test_leep_is_the_papers_mean_log_likelihood():
    rng = np.random.default_rng(1)
    theta, labels = rng.dirichlet(np.ones(6), size=40), rng.integers(0, 3, 40)
    joint = np.zeros((3, 6))
    for probabilities, y in zip(theta, labels, strict=True):
        joint[y] += probabilities / 40
    given = joint / joint.sum(axis=0)
    expected = np.mean([np.log(given[y] @ t) for t, y in zip(theta, labels, strict=True)])
    assert leep(theta, labels) == pytest.approx(expected, abs=1e-6)


def test_leep_is_zero_where_the_outputs_tell_the_class_and_the_prior_where_they_say_nothing():
    labels = np.arange(30) % 3
    assert leep(np.eye(3)[labels], labels) == pytest.approx(0.0, abs=1e-12)
    assert leep(np.full((30, 8), 1 / 8), labels) == pytest.approx(-np.log(3), abs=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_knn_accuracy_is_leave_one_out(k, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_BYTES", 8 * 7 * 16)  # sixteen rows at a time
    rows, labels = problem(90, 7, 3)
    right = 0
    for i in range(90):
        others = np.arange(90) != i
        near = KNeighborsClassifier(k).fit(rows[others], labels[others]).kneighbors(rows[[i]])[1][0]
        votes = np.bincount(labels[others][near], minlength=3)
        tied = [c for c in labels[others][near] if votes[c] == votes.max()]  # nearest first
        right += tied[0] == labels[i]
    assert knn_accuracy(rows, labels, k=k) == pytest.approx(right / 90)


def test_knn_of_many_rows_asks_a_sample(monkeypatch):
    monkeypatch.setattr("bottleneck.studies.rank.scores.MOST_QUERIES", 50)
    rows, labels = problem(400, 5, 2, shift=1.0)
    assert knn_accuracy(rows, labels) == pytest.approx(
        KNeighborsClassifier(1).fit(rows, labels).score(*problem(400, 5, 2, shift=1.0)), abs=0.5
    )
    assert (knn_accuracy(rows, labels) * 50) % 1 == pytest.approx(0.0, abs=1e-9)


def test_rows_on_disk_score_as_the_same_array(monkeypatch):
    rows, labels = problem(100, 6, 3)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(4), size=100)
    whole = asdict(score(rows, labels, probabilities))
    monkeypatch.setattr(scores, "CHUNK_BYTES", 8 * 6 * 7)
    chunked = asdict(score(Reader(rows), labels, Reader(probabilities)))
    assert chunked == pytest.approx(whole, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), N=st.integers(12, 40), D=st.integers(2, 30))
def test_rotation_and_scale_change_no_score_of_features(seed, N, D):
    rows, labels = problem(N, D, 3, seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(D, D)))
    turned = 2.5 * rows @ rotation
    assert logme(turned, labels) == pytest.approx(logme(rows, labels), abs=1e-6)
    assert h_score(turned, labels) == pytest.approx(h_score(rows, labels), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_the_names_of_classes_change_no_score(seed, order):
    rows, labels = problem(40, 5, 4, seed)
    renamed = np.array(order)[labels]
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(5), size=40)
    before, after = score(rows, labels, probabilities), score(rows, renamed, probabilities)
    assert asdict(after) == pytest.approx(asdict(before), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_changes_no_score(seed):
    rows, labels = problem(40, 5, 3, seed)
    order = np.random.default_rng(seed).permutation(40)
    before, after = score(rows, labels), score(rows[order], labels[order])
    assert after.logme == pytest.approx(before.logme, abs=1e-9)
    assert after.h_score == pytest.approx(before.h_score, abs=1e-9)
    assert after.knn == before.knn


def test_dead_features_and_copies_are_harmless():
    rows, labels = problem(50, 6, 3)
    padded = np.concatenate([rows, np.zeros((50, 4))], axis=1)
    assert logme(padded, labels) == pytest.approx(logme(rows, labels), abs=1e-6)
    doubled = np.concatenate([rows, rows], axis=1) / np.sqrt(2)
    assert logme(doubled, labels) == pytest.approx(logme(rows, labels), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels", "named"),
    [
        (np.ones((4, 2)), np.zeros(4, int), "2 or more"),
        (np.ones((4, 2)), np.arange(4), "equal"),
        (np.ones((4, 2)), np.arange(3), "4 rows"),
        (np.full((4, 2), np.nan), np.arange(4), "finite"),
        (np.ones((4, 2, 3)), np.arange(4), "vectors"),
    ],
)
def test_what_cannot_be_scored_is_named(rows, labels, named):
    with pytest.raises(FitError, match=named):
        score(rows, labels)
