"""Labels that are changed at random as a test of the judge."""

import numpy as np
import pytest

from bottleneck.studies.audit.self_test import ENOUGH, SelfTest, self_test
from tests.helpers.noisy_labels import drawn


def test_a_good_judge_finds_most_changed_labels_and_has_no_note():
    labels, p, _ = drawn(n=400, flipped=0.02)
    test = self_test(labels, p, 0.2, 0.75, seed=0)
    assert test.changed == ENOUGH
    assert test.found >= 0.8 * test.changed
    assert test.notes(0.97) == ()
    assert self_test(labels, p, 0.2, 0.75, seed=0) == test


def test_a_judge_near_chance_finds_few_and_the_note_says_so():
    labels, p, _ = drawn(n=400)
    shuffled = p[np.random.default_rng(0).permutation(len(p))]
    test = self_test(labels, shuffled, 0.2, 0.75, seed=0)
    assert test.found < 0.5 * test.changed
    (note,) = test.notes(0.25)
    assert note.code == "labels-hard-to-judge"
    assert note.details == {"changed": test.changed, "found": test.found, "accuracy": 0.25}
    assert "right in 25% of held-out labels" in note.message


@pytest.mark.parametrize("n", [1, 7, 40])
def test_small_sets_are_tested_too(n):
    labels, p, _ = drawn(n=n)
    test = self_test(labels, p, 0.2, 0.75, seed=0)
    assert 0 <= test.found <= test.changed <= ENOUGH


def test_bits_of_several_labels_are_changed_one_by_one():
    draw = np.random.default_rng(0)
    truth = draw.random((300, 2)) < 0.4
    p = np.clip(np.where(truth, 0.95, 0.05) + draw.normal(size=truth.shape) * 0.03, 0.01, 0.99)
    test = self_test(truth.astype(np.uint8), p, 0.2, 0.75, seed=0)
    assert test.changed >= 2 * ENOUGH
    assert test.found >= 0.9 * test.changed


def test_labels_that_are_not_judged_are_not_tested():
    draw = np.random.default_rng(0)
    truth = draw.random((300, 2)) < 0.4
    good = np.clip(np.where(truth[:, 0], 0.95, 0.05) + draw.normal(size=300) * 0.03, 0.01, 0.99)
    p = np.stack([good, draw.random(300)], axis=1)  # the head does not know the second
    labels = truth.astype(np.uint8)
    test = self_test(labels, p, 0.2, 0.75, seed=0, unjudged=(1,))
    assert test == self_test(labels[:, :1], p[:, :1], 0.2, 0.75, seed=0)
    assert self_test(labels, p, 0.2, 0.75, seed=0, unjudged=(0, 1)) == SelfTest(0, 0)


def test_a_note_only_where_less_than_half_is_found():
    assert SelfTest(100, 50).notes(0.6) == ()
    assert len(SelfTest(100, 49).notes(0.6)) == 1
