"""A run that did not learn never enters the means unseen."""

from pathlib import Path

import pytest

from bottleneck.errors import FitError
from bottleneck.studies.transfer_study.effects import can_train, complaints, require_valid, valid_runs
from bottleneck.studies.transfer_study.protocol import Run
from tests.helpers.study_runs import run_result

VAL, CLASSES = 400, 20


def result(seed, kind, n=0, share=1.0, accuracy=0.8, diverged=False):
    return run_result(Run(seed, kind, n, share), accuracy, VAL, CLASSES, diverged)


def bases(seed, a=0.8, b=0.8):
    return [result(seed, "baseA", accuracy=a), result(seed, "baseB", accuracy=b)]


@pytest.mark.parametrize(("accuracy", "learnt"), [(0.05, False), (0.07, False), (0.09, True), (0.8, True)])
def test_learnt_is_what_guessing_does_not_reach(accuracy, learnt):
    assert result(0, "baseB", accuracy=accuracy).learnt is learnt


def test_a_few_images_cannot_show_that_anything_was_learnt():
    assert not run_result(Run(0, "baseB"), accuracy=1.0, val=4, classes=2).learnt


@pytest.mark.parametrize("kind", ["baseA", "baseB"])
def test_a_seed_whose_base_guesses_is_left_out_and_named(kind):
    broken = bases(2, **{kind[-1].lower(): 0.05})
    runs = [*bases(0), result(0, "AnB", 3), *broken, result(2, "AnB", 3)]
    assert {run.seed for run in valid_runs(runs)} == {0}
    (sentence,) = complaints(runs)
    assert sentence.startswith("Seed 2 is left out")
    assert (
        f"network {kind[-1]} did not learn (0.050 on 400 val images, where guessing gives 0.050)" in sentence
    )


def test_no_copies_of_a_base_that_guesses():
    valid = valid_runs([*bases(0), *bases(1, a=0.05)])
    assert can_train(Run(0, "AnB", 3), valid)
    assert not can_train(Run(1, "BnB", 3), valid)
    assert not can_train(Run(2, "BnB", 3), valid)
    assert can_train(Run(1, "baseB"), valid)


def test_a_share_that_is_too_small_to_learn_from_costs_that_share_alone():
    runs = [*bases(0), result(0, "baseA", share=0.25, accuracy=0.05), result(0, "AnB+", 7)]
    assert [run.share for run in valid_runs(runs)] == [1.0] * 3
    assert not can_train(Run(0, "AnB+", 7, 0.25), valid_runs(runs))
    assert complaints(runs)[0].startswith("Transfer from 25% of A in seed 0 is left out: base network A")


def test_a_copy_that_diverged_is_left_out_and_one_that_guesses_is_named():
    runs = [*bases(0), result(0, "AnB", 7, accuracy=0.05), result(0, "random", 7, accuracy=0.05)]
    runs.append(result(0, "AnB+", 2, accuracy=0.0, diverged=True))
    assert len(valid_runs(runs)) == 4
    assert complaints(runs) == [
        "Diverged and left out: seed0-AnB+-2.",
        "No better than guessing, but counted: seed0-AnB-7.",
    ]


def test_a_sound_study_has_nothing_to_complain_of():
    runs = [*bases(0), result(0, "AnB", 7)]
    assert valid_runs(runs) == runs
    assert complaints(runs) == []
    require_valid(runs, Path())


def test_a_study_without_a_sound_seed_fails_by_name():
    diverged = [result(0, "baseA", accuracy=0.0, diverged=True), result(0, "baseB")]
    with pytest.raises(FitError, match=r"seed0-baseA \(its training diverged\)"):
        require_valid(diverged, Path("here"))
