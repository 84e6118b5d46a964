"""The rule of choice, beside scipy's paired test and by hand."""

import numpy as np
import pytest
from scipy import stats

from bottleneck.trials.evidence import Contender, Evidence, choose, difference


def evidence(score, loss=None, keys=None):
    score = np.asarray(score, float)
    keys = [f"k{i}" for i in range(len(score))] if keys is None else keys
    return Evidence(np.array(keys, object), score, np.zeros(len(score)) if loss is None else np.asarray(loss))


def test_the_error_of_a_gain_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    old, new = rng.random(80), rng.random(80) + 0.1
    found = difference(evidence(new), evidence(old))
    expected = stats.ttest_rel(new, old)
    assert found.gain / found.error == pytest.approx(expected.statistic)
    assert found.n == 80


def test_samples_are_paired_by_key_and_others_are_left_out():
    old = evidence([0, 1, 0, 1], keys=["a", "b", "c", "d"])
    new = evidence([1, 1, 1], keys=["d", "c", "x"])
    found = difference(new, old)
    assert (found.n, found.gain) == (2, 0.5)


def hits(right, n=400):
    return evidence(np.arange(n) < right)


@pytest.mark.parametrize(
    ("old", "new", "chosen"),
    [
        (200, 201, 0),  # one sample more
        (200, 204, 1),  # four pairs, all for the new one: two standard errors
        (200, 200, 0),
        (200, 190, 0),
    ],
)
def test_a_candidate_replaces_a_simpler_one_only_beyond_the_noise(old, new, chosen):
    contenders = [Contender("old", 0, hits(old)), Contender("new", 1, hits(new))]
    assert choose(contenders)[0] == chosen


def test_noise_counts_the_pairs_that_disagree_not_the_gain_alone():
    """Three more right of 400, but 59 samples changed sides: 59 pairs have a noise of 7.7."""
    old, new = np.zeros(400), np.zeros(400)
    old[:28], new[28:59] = 1, 1
    index, (step,) = choose([Contender("old", 0, evidence(old)), Contender("new", 1, evidence(new))])
    assert index == 0
    assert step.difference.gain == pytest.approx(3 / 400)
    assert step.difference.error == pytest.approx(np.sqrt(59) / 400, rel=0.01)
    assert "+0.75 points ± 1.92" in str(step)


def test_within_a_tier_the_best_is_taken_and_ties_go_to_the_lower_loss():
    loss = np.full(400, 0.5)
    contenders = [
        Contender("head", 0, hits(100)),
        Contender("first", 1, hits(200)),
        Contender("surer", 1, evidence(np.arange(400) < 200, -loss)),
        Contender("worse", 1, hits(150)),
    ]
    index, steps = choose(contenders)
    assert contenders[index].what == "surer"
    assert [step.what for step in steps] == ["surer"]


def test_the_chosen_one_is_what_later_tiers_must_beat():
    contenders = [Contender("a", 0, hits(100)), Contender("b", 1, hits(200)), Contender("c", 2, hits(150))]
    index, steps = choose(contenders)
    assert contenders[index].what == "b"
    assert [(step.what, step.against) for step in steps] == [("b", "a"), ("c", "b")]


def test_candidates_without_common_samples_never_replace():
    old, new = evidence([0, 0], keys=["a", "b"]), evidence([1, 1], keys=["c", "d"])
    assert choose([Contender("old", 0, old), Contender("new", 1, new)])[0] == 0


def test_one_sample_more_never_replaces_whatever_the_rounding():
    """Its gain and its error are both 1 / n, but floating-point numbers may differ."""
    for n in range(2, 400):
        old, new = np.zeros(n), np.zeros(n)
        new[0] = 1
        assert not difference(evidence(new), evidence(old)).beyond_noise, n
