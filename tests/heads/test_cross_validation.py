"""Folds, the choice of C, and the temperature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.model_selection import KFold, StratifiedKFold

from bottleneck.errors import FitError
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.config import AUTO_C, grid_of
from bottleneck.heads.cross_validation import Scores, assign_folds
from bottleneck.heads.metrics import fit_temperature, link_loss
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.samples import Target


def classes(codes):
    codes = np.asarray(codes, np.int64)
    return Target("t", "class", codes, tuple(f"c{k}" for k in range(codes.max() + 1)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=12, max_size=60), st.integers(2, 5), st.integers(0, 5))
def test_every_labelled_sample_is_held_out_once(codes, count, seed):
    target = classes([*codes, 0, 1, 2, 3, 0, 1])
    fold = assign_folds(target, count, seed=seed)
    assert ((fold == NO_FOLD) == (target.values == -1)).all()
    assert set(fold[fold != NO_FOLD]) == set(range(count))
    sizes = np.bincount(fold[fold != NO_FOLD])
    assert sizes.max() - sizes.min() <= 4  # at most one per class


@pytest.mark.parametrize(("names", "kind"), [(2, StratifiedKFold), (7, StratifiedKFold), (40, KFold)])
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_folds_are_those_of_scikit_learn(names, kind):
    """Folds stay those of earlier versions. KFold: no class has a sample for each fold."""
    generator = np.random.default_rng(names)
    for seed in range(20):
        codes = generator.permutation(np.resize(np.arange(names), 41))
        expected = np.empty(41, int)
        for number, (_, held) in enumerate(kind(5, shuffle=True, random_state=seed).split(codes, codes)):
            expected[held] = number
        assert assign_folds(classes(codes), 5, seed=seed).tolist() == expected.tolist()


def test_classes_are_spread():
    fold = assign_folds(classes([0] * 50 + [1] * 10), 5)
    for number in range(5):
        assert np.bincount(np.repeat([0, 1], [50, 10])[fold == number]).tolist() == [10, 2]


def test_groups_stay_together():
    groups = np.repeat([f"g{i}" for i in range(20)], 3).astype(object)
    fold = assign_folds(classes(np.arange(60) % 2), 4, groups)
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    assert set(fold) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_other_targets_have_folds(kind):
    generator = np.random.default_rng(0)
    if kind == "regression":
        values = np.where(np.arange(40) < 4, np.nan, generator.standard_normal(40))
    else:
        values = generator.integers(0, 2, (40, 3)).astype(np.uint8)
        values[:4] = 255
    fold = assign_folds(Target("t", kind, values, () if kind == "regression" else ("a", "b", "c")), 3)
    assert (fold[:4] == NO_FOLD).all()
    assert np.bincount(fold[4:]).min() >= 10


def test_fewer_samples_than_folds():
    with pytest.raises(FitError, match="3 labelled samples to train on, fewer than the 5 folds"):
        assign_folds(classes([0, 1, 0, -1]), 5)


def scores(mean, spread=0.01, loss=None):
    mean = np.asarray(mean)
    score = mean[:, None] + spread * np.array([-1, 0, 1])
    loss = np.arange(len(mean))[::-1] if loss is None else np.asarray(loss)
    return Scores(np.logspace(-3, 0, len(mean)), score, loss)


def test_the_best_mean_wins_and_ties_go_to_the_lower_loss():
    assert scores([0.7, 0.9, 0.8]).choose() == 1
    assert scores([0.9, 0.7, 0.9], loss=[0.2, 0.5, 0.3]).choose() == 0
    assert scores([0.9, 0.7, 0.9], loss=[0.4, 0.5, 0.3]).choose() == 2


def test_one_standard_error_takes_the_simplest_as_good():
    found = scores([0.7, 0.895, 0.9], spread=0.02)  # one standard error is 0.0115
    assert found.choose(one_standard_error=True) == 1
    assert scores([0.7, 0.88, 0.9], spread=0.02).choose(one_standard_error=True) == 2


def test_folds_without_samples_have_no_say():
    score = np.array([[0.5, np.nan], [0.6, np.nan]])
    assert Scores(np.array([0.1, 1.0]), score, np.zeros(2)).choose() == 1


def test_the_grid():
    assert len(AUTO_C) == 13
    assert np.allclose(np.log10(AUTO_C), np.linspace(-6, 0, 13))
    assert grid_of((1.0, 0.1, 1.0)) == (0.1, 1.0)
    for wrong in ("best", 0, (1, -1), np.nan):
        with pytest.raises(FitError):
            grid_of(wrong)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1e-6, 1e-3, 1e3, 1e5]), st.integers(0, 100))
def test_the_temperature_undoes_a_scale(factor, seed):
    """Of logits multiplied by a factor, the temperature is multiplied by it, on either side of 1."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((200, 3))
    p = apply_link(logits, "softmax")
    codes = np.array([generator.choice(3, p=row) for row in p])
    further = factor**1.5
    base, scaled = (
        fit_temperature(codes, factor * logits, "softmax"),
        fit_temperature(codes, further * logits, "softmax"),
    )
    assert scaled / further == pytest.approx(base / factor, rel=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["softmax", "ovr", "sigmoid"]), st.integers(0, 100))
def test_the_temperature_is_never_worse_than_none(link, seed):
    generator = np.random.default_rng(seed)
    logits = 5 * generator.standard_normal((30, 3))
    values = generator.integers(0, 2, (30, 3)) if link == "sigmoid" else generator.integers(0, 3, 30)
    found = fit_temperature(values, logits, link)
    assert 0 < found < np.inf
    assert link_loss(values, logits, link, found) <= link_loss(values, logits, link) + 1e-12


def drawn(generator, means, n):
    """Samples (n, D) about the means (K, D) of their classes, and the classes."""
    y = np.arange(n) % len(means)
    return means[y] + generator.standard_normal((n, means.shape[1])), y


@pytest.mark.parametrize(("K", "held", "C"), [(2, 20, 1.0), (2, 40, 1e-3), (3, 15, 1.0), (10, 30, 0.1)])
def test_where_all_is_right_fresh_samples_fare_no_worse(K, held, C):
    """scikit-learn's head and its log loss, of 3,000 fresh samples; those held out are right throughout."""
    cases = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        means = 1.2 * generator.standard_normal((K, 20))
        X, y = drawn(generator, means, 15 * K)
        model = LogisticRegression(C=C, max_iter=1000).fit(X, y)
        V, v = drawn(generator, means, held)
        if (model.predict(V) != v).any():
            continue
        cases += 1
        fresh, answers = drawn(generator, means, 3000)
        before = sk_log_loss(answers, apply_link(logits_of(model, fresh), "softmax"))
        found = fit_temperature(v, logits_of(model, V), "softmax")
        after = sk_log_loss(answers, apply_link(logits_of(model, fresh), "softmax", found))
        assert after <= before + 1e-9
        confidence = apply_link(logits_of(model, fresh), "softmax", found).max(axis=1)
        assert confidence.mean() < 1 - 1e-3
    assert cases >= 10


def logits_of(model, X):
    z = model.decision_function(X)
    return np.stack([-z / 2, z / 2], axis=1) if z.ndim == 1 else z


def test_small_logits_of_samples_that_are_all_right_become_platts_confidence():
    """Two classes at one distance: the smoothed targets are met exactly at probability (n + 1) / (n + 2)."""
    n = 48
    codes = np.arange(n) % 2
    z = np.where(codes == 1, 0.01, -0.01)
    for logits, link, values in (
        (np.stack([-z / 2, z / 2], axis=1), "softmax", codes),
        (z[:, None], "sigmoid", codes[:, None]),
    ):
        found = fit_temperature(values, logits, link)
        p = apply_link(logits, link, found)
        assert p.max() == pytest.approx(49 / 50, abs=1e-4)


@pytest.mark.parametrize("link", ["softmax", "ovr", "sigmoid"])
def test_large_logits_of_samples_that_are_all_right_are_left(link):
    codes = np.arange(30) % 3
    logits = 20.0 * np.eye(3)[codes] - 10
    values = np.eye(3, dtype=int)[codes] if link == "sigmoid" else codes
    assert fit_temperature(values, logits, link) == 1


def test_with_mistakes_the_temperature_is_that_of_the_least_loss():
    """Overconfident logits: the temperature is above 1 and the one that scipy finds for the plain loss."""
    generator = np.random.default_rng(4)
    logits = 2 * generator.standard_normal((300, 3))
    codes = np.array([generator.choice(3, p=row) for row in apply_link(logits, "softmax")])
    best = minimize_scalar(
        lambda t: sk_log_loss(codes, apply_link(5 * logits / t, "softmax")), bounds=(1, 30), method="bounded"
    )
    assert fit_temperature(codes, 5 * logits, "softmax") == pytest.approx(best.x, rel=1e-3)


def test_no_held_out_sample_no_temperature():
    assert fit_temperature(np.zeros(0, int), np.zeros((0, 2)), "softmax") == 1


@pytest.mark.parametrize("link", ["softmax", "ovr", "sigmoid"])
def test_a_loss_is_the_same_taken_in_blocks(link, monkeypatch):
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((50, 3)).astype(np.float32)
    values = generator.integers(0, 2, (50, 3)) if link == "sigmoid" else generator.integers(0, 3, 50)
    whole = link_loss(values, logits, link, 0.7)
    monkeypatch.setattr("bottleneck.heads.metrics.BLOCK_BYTES", 4 * 3 * 7)
    assert link_loss(values, logits, link, 0.7) == pytest.approx(whole, rel=1e-12)
    p = np.clip(apply_link(logits, link, 0.7), 1e-15, 1)
    judge = (
        [sk_log_loss(values[:, k], p[:, k]) for k in range(3)]
        if link == "sigmoid"
        else sk_log_loss(values, p)
    )
    assert whole == pytest.approx(np.mean(judge), rel=1e-6)
