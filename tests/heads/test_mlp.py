"""The small network: scikit-learn's contract, repeatable, stopped early, folded without a difference."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import check_estimator

from bottleneck.heads.artifact import load_head
from bottleneck.heads.mlp import HELD_OUT, MLPHead, held_out
from bottleneck.samples import ArrayRows


class Reader(ArrayRows):
    """An array behind the row-reader protocol."""


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600].astype(np.float32), y[:600]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_scikit_learn_accepts_it():
    check_estimator(MLPHead(epochs=12), on_skip=None)


def test_it_learns_what_is_not_linear():
    x = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    y = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")
    assert MLPHead(epochs=40).fit(x[:400], y[:400]).score(x[400:], y[400:]) > 0.9


def test_a_seed_fixes_all_and_leaves_torch_alone(digits):
    x, y = digits
    before = torch.random.get_rng_state()
    first, same, other = (MLPHead(epochs=2, random_state=seed).fit(x, y) for seed in (1, 1, 2))
    assert np.array_equal(first.logits(x), same.logits(x))
    assert not np.array_equal(first.logits(x), other.logits(x))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_best_epoch_is_kept_and_folded_exactly(digits):
    """The arrays' loss on the held-out samples is the least that training saw, with BatchNorm in place."""
    x, y = digits
    head = MLPHead(epochs=6).fit(x, y)
    held = held_out(y, HELD_OUT, np.random.RandomState(0))
    loss = log_loss(y[held], head.predict_proba(x[held]), labels=head.classes_)
    assert loss == pytest.approx(min(head.losses_), rel=1e-4)
    assert head.fit_.settings == {"epochs": int(np.argmin(head.losses_)) + 1, "held_out": int(held.sum())}


def test_it_stops_when_no_epoch_is_better():
    """Labels without any relation: the first epochs are the best, and training ends soon after."""
    generator = np.random.default_rng(0)
    head = MLPHead(patience=2).fit(generator.normal(size=(200, 30)), generator.integers(0, 2, 200))
    assert head.n_iter_ == int(np.argmin(head.losses_)) + 1 + 2
    assert head.n_iter_ < 50


def test_the_saved_artifact_decides_exactly_alike(digits, tmp_path):
    x, y = digits
    head = MLPHead(epochs=1).fit(x, y)
    saved = load_head(head.artifact().save(tmp_path / "head.safetensors"))
    assert np.array_equal(saved.decision(x), head.logits(x))
    assert saved.arrays["coef"].shape == (128, 64)


def test_readers_and_tensors_train_as_arrays_do(digits):
    x, y = digits
    expected = MLPHead(epochs=1).fit(x, y).logits(x)
    for rows in (Reader(x), torch.from_numpy(x)):
        assert np.array_equal(MLPHead(epochs=1).fit(rows, y).logits(rows), expected)


def test_balanced_weights_help_the_rare_class():
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1], [570, 30])
    x = generator.normal(size=(600, 4)) + 0.8 * y[:, None]
    plain, balanced = (
        MLPHead(epochs=20, class_weight=weight).fit(x, y).predict(x) for weight in (None, "balanced")
    )
    assert balanced[y == 1].mean() > plain[y == 1].mean() + 0.3


def test_held_out_samples_are_spread_over_the_classes():
    codes = np.repeat(np.arange(5), 40)
    held = held_out(codes, 0.1, np.random.RandomState(0))
    assert np.bincount(codes[held]).tolist() == [4] * 5


def test_no_class_is_held_out_entirely():
    codes = np.r_[np.zeros(95, int), np.arange(1, 6)]
    for seed in range(20):
        held = held_out(codes, 0.4, np.random.RandomState(seed))
        assert set(codes[~held]) == set(codes)


def test_groups_are_held_out_whole(digits):
    _, y = digits
    groups = np.array([f"group {i // 6}" for i in range(600)])
    held = held_out(y, 0.1, np.random.RandomState(0), groups)
    assert 40 <= held.sum() <= 80
    assert all(len(set(held[groups == group])) == 1 for group in set(groups))


@pytest.mark.parametrize("parameter", ["epochs", "patience"])
def test_a_strange_parameter_is_refused(digits, parameter):
    with pytest.raises(ValueError, match=parameter):
        MLPHead(**{parameter: 0}).fit(*digits)
