"""Novelty: the rate of rejected known samples is kept, and classes that are left out are told."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bottleneck.errors import ArtifactError
from bottleneck.heads import novelty as module
from bottleneck.heads.novelty import Novelty, fit_novelty
from bottleneck.samples import ArrayRows

D, K = 24, 6
CENTRES = 1.5 * np.random.default_rng(0).standard_normal((K, D))


def drawn(n, seed, classes=range(4)):
    """Features (n, D) of the named classes, none of them negative, as after a ReLU."""
    generator = np.random.default_rng(seed)
    centres = CENTRES[generator.choice(classes, n)]
    return np.maximum(centres + generator.standard_normal((n, D)), 0).astype(np.float32)


def fitted(x, units=None, blocks=((0, D),)):
    return fit_novelty(ArrayRows(x), blocks, np.arange(len(x)) if units is None else units)


@pytest.mark.parametrize("n", [60, 300])
def test_the_promised_share_of_known_samples_is_rejected(n):
    shares = []
    for seed in range(30):
        found = fitted(drawn(n, seed))
        shares.append((found.of(drawn(400, 1000 + seed)) > found.threshold(0.1)).mean())
    assert np.mean(shares) == pytest.approx(0.1, abs=3 * np.std(shares) / np.sqrt(30) + 0.5 / n)


def test_classes_that_are_left_out_are_farther():
    found = fitted(drawn(300, 0))
    known, unknown = found.of(drawn(200, 1)), found.of(drawn(200, 2, [4, 5]))
    assert roc_auc_score([0] * 200 + [1] * 200, [*known, *unknown]) > 0.9
    assert (found.of(drawn(300, 0)) < known.min()).mean() < 0.5  # stored rows count themselves, in use alone


def test_equal_images_and_groups_are_not_compared_with_each_other():
    x = np.repeat(drawn(100, 0), 4, axis=0)
    blind, aware = fitted(x), fitted(x, np.repeat(np.arange(100), 4))
    new = drawn(400, 1)
    assert (blind.of(new) > blind.threshold(0.1)).mean() > 0.9
    assert (aware.of(new) > aware.threshold(0.1)).mean() < 0.2
    assert fitted(x, np.zeros(400, int)) is None


def test_what_is_stored_is_bounded_and_always_the_same(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    one, two = fitted(drawn(200, 0)), fitted(drawn(200, 0))
    assert one.rows.shape == (50, D)
    assert one.rows.dtype == np.float16
    assert one.scores.shape == (50,)
    assert (one.rows == two.rows).all()
    assert (one.scores == two.scores).all()
    monkeypatch.setattr(module, "MOST_BYTES", 2 * D * 7)
    assert fitted(drawn(200, 0)).rows.shape == (7, D)


def test_a_node_of_large_numbers_counts_as_much_as_one_of_small_ones():
    x, new = drawn(80, 0), drawn(20, 1)
    scale = np.repeat([1.0, 1e4], D // 2).astype(np.float32)
    blocks = ((0, D // 2), (D // 2, D))
    plain, scaled = fitted(x, blocks=blocks), fitted(x * scale, blocks=blocks)
    assert np.allclose(plain.of(new), scaled.of(new * scale), atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples(n):
    found = fitted(drawn(n, 0))
    if n == 1:
        assert found is None
    else:
        assert np.isfinite(found.of(np.zeros((3, D), np.float32))).all()


def test_a_rate_below_what_the_samples_can_tell_is_refused():
    found = fitted(drawn(30, 0))
    with pytest.raises(
        ArtifactError, match=r"--reject 0\.01 needs 99 scored .* has 30\. Give 0\.0323 or more"
    ):
        found.threshold(0.01)
    assert found.threshold(0.0323) == found.scores[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"rows": np.ones((3, 5), np.float16)},
        {"rows": np.full((3, 4), np.inf, np.float16)},
        {"scores": np.array([2.0, 1.0])},
        {"scores": np.zeros(0)},
        {"blocks": ((0, 2), (1, 3))},
        {"blocks": ((3, -1),)},
        {"k": 0},
    ],
)
def test_what_cannot_be_is_refused(change):
    fields = {"rows": np.ones((3, 4), np.float16), "scores": np.ones(2), "blocks": ((0, 4),)}
    Novelty(**fields)
    with pytest.raises(ArtifactError):
        Novelty(**fields | change)
