"""Pulls of training samples beside heads that were fitted without each of them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from bottleneck.errors import ArtifactError
from bottleneck.heads import influence
from bottleneck.heads.artifact import HeadDescription
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.influence import Influence
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.samples import ArrayRows, InputBlock, Target

N, D = 30, 6
EXACT = SweepConfig(tol=1e-14, dtype=np.float64, standardize=False)  # that of all samples stays


class Blocks(ArrayRows):
    inputs = (InputBlock("a", 0, 4), InputBlock("b", 4, 6))


def drawn(kind, K=3, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, K, N)
    X = draw.normal(size=(K, D))[truth] + draw.normal(size=(N, D)) * 1.5
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    values = {
        "class": truth,
        "multilabel": (draw.random((N, K)) < 0.4).astype(np.uint8),
        "regression": X @ draw.normal(size=D),
    }
    names = () if kind == "regression" else tuple("abc"[:K])
    return X, Target("t", kind, values[kind], names), draw.normal(size=(3, D))


def fit(head, X, target, C=0.3, keep=None, **options):
    scales = options.pop("scales", None)
    weight = np.ones(N) if keep is None else keep * 1.0
    problem = TargetProblem(target, np.full(N, NO_FOLD, np.int16), sample_weight=weight, **options)
    rows = Blocks(X) if scales else ArrayRows(X)
    (found,) = fit_kind(head, rows, [problem], C, config=EXACT, scales=scales)
    link = {"class": "softmax", "multilabel": "sigmoid", "regression": "identity"}[target.kind]
    assert found.link in (link, "ovr")
    return found.artifact(
        HeadDescription(target="t", target_kind=target.kind, class_names=target.class_names)
    )


def without_each(head, X, target, rows, of, **options):
    """Outputs of the head less those of heads without each sample, at the same standardisation: (Q, n)."""
    whole = fit(head, X, target, **options).decision(rows)
    parts = [fit(head, X, target, keep=np.arange(N) != i, **options).decision(rows) for i in range(N)]
    return np.stack([((whole - part) * of).sum(axis=1) for part in parts], axis=1)


def margin(artifact, rows):
    """Each row's first logit less the second."""
    of = np.zeros((len(rows), artifact.outputs))
    of[:, 0] = 1
    if artifact.target_kind == "class":
        of[:, 1] = -1
    return of


@pytest.mark.parametrize(
    ("head", "kind", "K", "options"),
    [
        ("ridge", "class", 2, {"class_weight": "balanced"}),
        ("ridge", "regression", 1, {}),
        ("ridge", "class", 3, {"scales": {"a": 0.5, "b": 2.0}}),
    ],
)
def test_the_pull_on_a_ridge_head_is_the_difference_of_a_refit(head, kind, K, options):
    X, target, rows = drawn(kind, K)
    if options.get("class_weight"):  # of all samples, as the head's own; a refit would count anew
        counts = np.bincount(target.values)
        options = {"class_weight": {k: N / (K * count) for k, count in enumerate(counts)}}
    artifact = fit(head, X, target, **options)
    of = margin(artifact, rows)
    pulls = Influence(artifact, X, target).pulls(rows, of)
    expected = without_each(head, X, target, rows, of, **options)
    np.testing.assert_allclose(pulls, expected, rtol=1e-2, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "K", "options"),
    [
        ("class", 2, {}),
        ("class", 3, {}),
        ("class", 2, {"C": 3}),
        ("class", 3, {"C": 3}),
        ("class", 3, {"multi_class": "ovr"}),
        ("class", 3, {"class_weight": {0: 2.0, 2: 0.5}}),
        ("multilabel", 3, {}),
        ("class", 3, {"scales": {"a": 1.0, "b": 0.0}}),
        ("class", 3, {"C": 0.3, "whole": False}),
    ],
)
def test_the_pull_on_a_logistic_head_ranks_as_refits_do(monkeypatch, kind, K, options):
    if not options.pop("whole", True):
        monkeypatch.setattr(influence, "MOST_COUPLED", 0)
    X, target, rows = drawn(kind, K, seed=1)
    artifact = fit("logistic", X, target, **options)
    of = margin(artifact, rows)
    pulls = Influence(artifact, X, target).pulls(rows, of)
    expected = without_each("logistic", X, target, rows, of, **options)
    for found, each in zip(pulls, expected, strict=True):
        assert spearmanr(found, each)[0] >= 0.95
        assert np.polyfit(each, found, 1)[0] == pytest.approx(1, abs=0.2)


def test_more_features_than_samples_change_nothing():
    """Rows and refits are rotated into more dimensions, in which they take no part."""
    X, target, rows = drawn("class", seed=1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(60, D)))[0].T  # (D, 60)
    narrow = fit("logistic", X, target)
    arrays = {
        "coef": narrow.coef @ turn,
        "intercept": narrow.intercept,
        "mean": np.zeros(60),
        "scale": np.ones(60),
    }
    wide = replace(narrow, arrays={name: np.float32(array) for name, array in arrays.items()})
    found = Influence(wide, X @ turn, target).pulls(rows @ turn, margin(wide, rows))
    np.testing.assert_allclose(
        found, Influence(narrow, X, target).pulls(rows, margin(narrow, rows)), atol=1e-4
    )


def test_other_answers_and_other_kinds_of_heads_are_refused():
    X, target, _ = drawn("class")
    artifact = fit("logistic", X, target)
    with pytest.raises(ArtifactError, match="fitted to other labels"):
        Influence(artifact, X, replace(target, values=np.roll(target.values, 7)))
    (knn,) = fit_kind(
        "knn", ArrayRows(X), [TargetProblem(target, np.full(N, NO_FOLD, np.int16))], 1.0, config=EXACT
    )
    description = HeadDescription(class_names=target.class_names)
    with pytest.raises(ArtifactError, match="on a knn head"):
        Influence(knn.artifact(description), X, target)


def test_pulls_that_need_too_much_memory_are_refused(monkeypatch):
    X, target, _ = drawn("class")
    head = fit("logistic", X, target)
    influence.require_memory(head, N)
    influence.require_memory(head, 100_000)
    with pytest.raises(ArtifactError, match=r"100,000,000 training samples on 3 .* take 31"):
        influence.require_memory(head, 100_000_000)
