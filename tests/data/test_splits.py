"""Fractions set aside from train: their sizes, their strata, their groups, and that they repeat."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bottleneck.data.splits import classes_set_aside, classes_thinned, set_aside, split_named
from bottleneck.errors import SourceError
from bottleneck.samples import SampleTable, Target

FRACTIONS = st.floats(0.05, 0.45)


def table(classes, groups=None, split=None, kind="class"):
    """Samples of these class codes (−1 unlabelled)."""
    classes = np.asarray(classes)
    S = len(classes)
    class_names = tuple(map(str, range(int(classes.max(initial=-1)) + 1)))
    return SampleTable(
        key=np.array([f"k{number}" for number in range(S)], object),
        image=np.arange(S)[:, None],
        split=np.array(split if split is not None else ["train"] * S, object),
        targets={"t": Target("t", kind, classes, class_names)},
        group=None if groups is None else np.array([f"g{group}" for group in groups], object),
    )


@settings(deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=20, max_size=200), FRACTIONS, FRACTIONS, st.integers(0, 99))
@example([0] * 16 + [1, 1, 1, -1], 0.375, 0.375, 0)  # three samples: one for each split
def test_every_class_gives_its_share(classes, val, test, seed):
    samples = table(classes)
    split = set_aside(samples, val, test, seed)
    S = len(classes)
    values = samples.targets["t"].values
    for name, fraction in (("val", val), ("test", test)):
        assert abs((split == name).sum() - S * fraction) <= 1 + len(set(classes))
        for code in set(classes):
            assert abs((split[values == code] == name).sum() - (values == code).sum() * fraction) < 1 + 1e-6
    for code in set(classes):
        assert "train" in split[values == code]


@settings(deadline=None)
@given(st.integers(50, 300), st.integers(1, 5), FRACTIONS, st.integers(0, 9))
def test_the_total_is_met_where_classes_are_large(S, C, val, seed):
    split = set_aside(table(np.arange(S) % C), val, 0.0, seed)
    assert (split == "val").sum() == round(S * val)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 9))
def test_groups_stay_whole_and_shares_are_kept_as_well_as_groups_allow(data, seed):
    S = data.draw(st.integers(30, 150))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=S, max_size=S))
    groups = data.draw(st.lists(st.integers(0, S), min_size=S, max_size=S))
    largest = max(np.unique(groups, return_counts=True)[1])
    assume(len(set(groups)) >= 12 and largest <= S / 8)
    samples = table(classes, groups)
    split = set_aside(samples, 0.25, 0.25, seed)
    for group in set(samples.group):
        assert len(set(split[samples.group == group])) == 1
    for name in ("val", "test"):
        assert abs((split == name).sum() - S / 4) <= largest + 3


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=6, max_size=60), FRACTIONS, FRACTIONS
)
@example([(0, 0)] * 9 + [(1, 1), (1, 2), (1, 3)] + [(0, group) for group in range(4, 10)], 0.45, 0.45)
def test_every_class_keeps_a_group_in_train_or_is_told(pairs, val, test):
    samples = table([code for code, _ in pairs], [group for _, group in pairs])
    try:
        split = set_aside(samples, val, test)
    except SourceError:
        return
    after = replace(samples, split=split)
    lost = set(samples.targets["t"].values) - set(samples.targets["t"].values[split == "train"])
    notes = classes_set_aside(samples, after)
    assert sorted(map(str, lost)) == (notes[0].details["classes"] if notes else [])


@pytest.mark.parametrize(
    ("classes", "val", "told"),
    [([0] * 50 + [1] * 10, 0.99, ["0", "1"]), ([0] * 50 + [1] * 2, 0.5, ["1"]), ([0] * 9 + [1], 0.2, [])],
)
def test_a_class_of_which_one_train_sample_is_left_is_told(classes, val, told):
    samples = table(classes)
    after = replace(samples, split=set_aside(samples, val))
    kept = np.unique(samples.targets["t"].values[after.split == "train"], return_counts=True)[1]
    assert [str(code) for code in range(2) if kept[code] == 1 < classes.count(code)] == told
    assert [name for note in classes_thinned(samples, after) for name in note.details["classes"]] == told


def test_a_class_whose_last_group_would_go_keeps_it():
    groups = [0] * 6 + [1] * 6 + [2] * 6 + [3] * 2  # the last group holds all of class 1
    samples = table([0] * 18 + [1] * 2, groups)
    for seed in range(20):
        split = set_aside(samples, 0.3, 0.3, seed)
        assert set(split[18:]) == {"train"}
        assert set(split) == {"train", "val", "test"}


def test_a_class_of_one_group_that_has_to_go_is_told():
    samples = table([0, 0, 1, 1], [0, 0, 1, 1])
    after = replace(samples, split=set_aside(samples, 0.5))
    (note,) = classes_set_aside(samples, after)
    assert (note.code, note.changes_result) == ("classes-without-train-samples", True)


def test_groups_keep_the_classes_in_proportion():
    random = np.random.default_rng(0)
    groups = random.integers(0, 100, 1000)
    classes = (groups % 10 == 0).astype(int)  # one group in ten is of the rare class
    split = set_aside(table(classes, groups), 0.2, 0.2)
    for name in ("train", "val", "test"):
        assert classes[split == name].mean() == pytest.approx(classes.mean(), abs=0.03)


def test_two_groups_are_enough_for_two_splits():
    split = set_aside(table([0, 1, 0, 1], [0, 0, 1, 1]), 0.5)
    assert sorted(split) == ["train", "train", "val", "val"]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(40)), st.booleans())
def test_the_order_of_the_samples_does_not_matter(order, grouped):
    samples = table(np.arange(40) % 3, np.arange(40) // 2 if grouped else None)
    split = set_aside(samples, 0.2, 0.2, 7)
    assert np.array_equal(set_aside(samples.take(np.array(order)), 0.2, 0.2, 7), split[order])


def test_the_seed_matters_and_is_all_that_does():
    samples = table(np.arange(100) % 3)
    first = set_aside(samples, 0.3, seed=1)
    assert np.array_equal(set_aside(samples, 0.3, seed=1), first)
    assert not np.array_equal(set_aside(samples, 0.3, seed=2), first)


def test_a_new_sample_moves_few_others():
    samples = table([0] * 200)
    before = set_aside(samples.take(np.arange(199)), 0.2)
    after = set_aside(samples, 0.2)
    assert (before != after[:199]).sum() <= 2


def test_an_existing_test_split_is_left_alone():
    given_split = ["test"] * 10 + ["train"] * 90
    split = set_aside(table(np.arange(100) % 2, split=given_split), val_fraction=0.1)
    assert (split[:10] == "test").all()
    assert (split == "val").sum() == 9


def test_targets_that_are_no_classes_have_one_stratum():
    samples = table(np.linspace(0, 1, 50), kind="regression")
    assert (set_aside(samples, 0.2) == "val").sum() == 10


def test_nothing_is_set_aside_without_a_fraction():
    assert set(set_aside(table([0, 1]))) == {"train"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": -0.1}, "between 0 and 1"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"test_fraction": float("nan")}, "between 0 and 1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "together"),
        ({"val_fraction": 0.01}, "impossible"),
    ],
)
def test_fractions_that_cannot_be(arguments, message):
    with pytest.raises(SourceError, match=message):
        set_aside(table([0, 1] * 5), **arguments)


def test_one_group_cannot_be_divided():
    with pytest.raises(SourceError, match=r"impossible|leave no train"):
        set_aside(table([0, 1] * 5, [0] * 10), 0.5)


def test_a_split_that_exists_is_not_made_again():
    samples = table([0] * 10, split=["val"] * 4 + ["train"] * 6)
    with pytest.raises(SourceError, match="has 4 val samples of its own"):
        set_aside(samples, 0.2)


@pytest.mark.parametrize("name", ["", "folds", "trainval", "valley", "tests"])
def test_other_names_name_no_split(name):
    assert split_named(name) is None
