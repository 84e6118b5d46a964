"""Sets of classes: they cover what they promise on exchangeable samples, whatever the head is worth.

The judge is a plain implementation below: MAPIE's score of a class counts its own mass too, which is another
form, and torchcp needs torch_geometric and transformers.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.errors import ArtifactError
from bottleneck.heads.prediction_sets import MOST_SCORES, PENALTY, RANK, Conformal


def plain_score(p, y):
    """The mass of likelier classes, and the penalty of the rank, of class y of one sample."""
    ranked = sorted(range(len(p)), key=lambda k: (-p[k], k))
    rank = ranked.index(y)
    return round(float(sum(p[k] for k in ranked[:rank])) + PENALTY * max(0, rank + 1 - RANK), 6)


def plain_set(calibration, codes, p, coverage):
    scores = sorted(plain_score(*pair) for pair in zip(calibration, codes, strict=True))
    limit = scores[math.ceil((len(scores) + 1) * coverage) - 1]
    return [k for k in range(len(p)) if plain_score(p, k) <= limit + 1e-9]


def drawn(generator, n, K, sharpness):
    """Probabilities (n, K), and codes (n,) that follow others."""
    p = generator.dirichlet(np.full(K, sharpness), n)
    true = 0.7 * p + 0.3 * generator.dirichlet(np.full(K, 0.3), n)
    return p, np.array([generator.choice(K, p=row / row.sum()) for row in true])


@pytest.mark.parametrize("K", [2, 3, 12])
def test_the_sets_are_those_of_the_plain_implementation(K):
    p, codes = drawn(np.random.default_rng(K), 150, K, 0.5)
    conformal = Conformal.of(p[:100], codes[:100])
    for coverage in (0.5, 0.8, 0.95):
        members = conformal.members(p[100:], coverage)
        expected = [plain_set(p[:100], codes[:100], row, coverage) for row in p[100:]]
        assert [np.flatnonzero(row).tolist() for row in members] == expected


@settings(max_examples=12)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 4, 15]),
    st.sampled_from([0.2, 1.0]),
    st.sampled_from([0.7, 0.9]),
)
def test_coverage_holds_on_exchangeable_samples(seed, K, sharpness, coverage):
    """The mean over splits is from c to c + 1/(m + 1), or the head's accuracy where that is higher."""
    generator = np.random.default_rng(seed)
    p, codes = drawn(generator, 400, K, sharpness)
    m, shares, right = 60, [], (p.argmax(axis=1) == codes).mean()
    for _ in range(80):
        order = generator.permutation(400)
        members = Conformal.of(p[order[:m]], codes[order[:m]]).members(p[order[m:]], coverage)
        shares.append(members[np.arange(400 - m), codes[order[m:]]].mean())
    error = 4 * np.std(shares) / np.sqrt(len(shares)) + 1e-3
    assert np.mean(shares) >= coverage - error
    assert np.mean(shares) <= max(coverage + 1 / (m + 1), right + 1 / (m + 1)) + error


def test_the_likeliest_class_is_always_in_and_sets_grow_with_the_coverage():
    p, codes = drawn(np.random.default_rng(0), 300, 7, 0.5)
    conformal = Conformal.of(p[:200], codes[:200])
    small, large = conformal.members(p[200:], 0.5), conformal.members(p[200:], 0.95)
    assert small[np.arange(100), p[200:].argmax(axis=1)].all()
    assert (large >= small).all()
    assert large.sum() > small.sum()


def test_equal_probabilities_stay_equal_in_float32():
    p = np.full((50, 3), 1 / 3)
    codes = np.arange(50) % 3
    conformal = Conformal.of(p.astype(np.float32), codes)
    assert conformal.members(p, 0.9).all()
    assert (conformal.members(p, 0.5).sum(axis=1) == 2).all()


def test_a_coverage_above_what_the_samples_can_tell_is_refused():
    conformal = Conformal.of(*drawn(np.random.default_rng(0), 30, 3, 1.0))
    with pytest.raises(ArtifactError, match=r"--coverage 0\.99 needs 99 held-out .* Give 0\.9677 or less"):
        conformal.threshold(0.99)
    assert conformal.threshold(0.9677) == conformal.scores[-1]


def test_of_many_scores_a_part_is_kept():
    p = np.random.default_rng(0).dirichlet(np.ones(2), MOST_SCORES + 5)
    assert len(Conformal.of(p, np.zeros(len(p), int)).scores) == MOST_SCORES
    assert Conformal.of(p[:0], np.zeros(0, int)) is None


@pytest.mark.parametrize("change", [{"scores": np.array([1.0, 0.0])}, {"scores": np.zeros(0)}, {"rank": 0}])
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ArtifactError):
        Conformal(**{"scores": np.zeros(2)} | change)
