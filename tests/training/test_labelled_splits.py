"""Which samples train and which choose: labels, splits, groups."""

import numpy as np
import pytest

from bottleneck.errors import FitError
from bottleneck.samples import SampleTable, Target
from bottleneck.training.labelled_splits import labelled_splits


def table(n=40, splits=None, labels=None, group=None):
    """Samples with one target of two classes."""
    labels = np.arange(n) % 2 if labels is None else np.asarray(labels)
    return SampleTable(
        key=np.array([f"{i}.png" for i in range(n)], object),
        image=np.arange(n)[:, None],
        split=np.array(splits or ["train"] * n, object),
        targets={"label": Target("label", "class", labels, ("a", "b"))},
        group=None if group is None else np.array(group, object),
    )


def test_splits_are_taken_as_they_are_without_the_unlabelled():
    labels = np.arange(40) % 2
    labels[[3, 25]] = -1
    sets = labelled_splits(table(40, ["train"] * 20 + ["val"] * 20, labels), "label")
    assert not sets.carved
    assert set(sets.rows) == {"train", "val"}
    assert len(sets.rows["train"]) == len(sets.rows["val"]) == 19


def test_val_is_carved_from_train_by_class():
    sets = labelled_splits(table(40, ["train"] * 30 + ["test"] * 10), "label", val_fraction=0.2)
    assert sets.carved
    assert len(sets.rows["val"]) == 6
    assert not set(sets.rows["val"]) & set(sets.rows["train"])
    assert sorted([*sets.rows["val"], *sets.rows["train"]]) == list(range(30))
    assert np.bincount(sets.labels[sets.rows["val"]]).tolist() == [3, 3]


def test_groups_stay_whole_when_val_is_carved():
    groups = [f"g{i // 4}" for i in range(40)]
    sets = labelled_splits(table(40, group=groups), "label", val_fraction=0.3)
    of = np.array(groups)
    assert not set(of[sets.rows["val"]]) & set(of[sets.rows["train"]])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (table(10, ["val"] * 10), "No train sample"),
        (table(10, ["train"] * 5 + ["val"] * 5, [0] * 5 + [1] * 5), "one class"),
        (table(8, group=["same"] * 8), "cannot give one"),
    ],
)
def test_what_cannot_be_trained_on_is_named(samples, message):
    with pytest.raises(FitError, match=message):
        labelled_splits(samples, "label")


def test_an_unknown_target_names_those_there_are():
    with pytest.raises(FitError, match="no target 'species'; there are 'label'"):
        labelled_splits(table(), "species")


def test_classes_that_train_lacks_are_left_out_and_counted():
    """Fine-tuning, training from scratch and `compare` take their samples from here."""
    names = ("a", "b", "only in val", "nowhere")
    codes = np.array([0, 1, 0, 1, 2, 0, 1, 2, -1])
    split = np.array(["train"] * 4 + ["val"] * 3 + ["test"] * 2, object)
    key = np.array([str(i) for i in range(9)], object)
    target = Target("label", "class", codes, names)
    table = SampleTable(key, np.arange(9)[:, None], split, {"label": target})
    sets = labelled_splits(table, "label")
    assert sets.table.targets["label"].class_names == ("a", "b")
    assert {part: rows.tolist() for part, rows in sets.rows.items()} == {"train": [0, 1, 2, 3], "val": [5, 6]}
    classes, unlabelled = sets.notes
    assert classes.details["unseen"] == {"only in val": 2, "nowhere": 0}
    assert unlabelled.message.startswith("1 of 9 samples has no label")


def test_val_taken_from_train_leaves_every_class_in_train():
    """A group that has all samples of a class stays in train."""
    codes = np.array([0, 1] * 10 + [2] * 8)
    group = np.array([f"g{i // 2}" for i in range(20)] + ["whole"] * 8, object)
    key = np.array([str(i) for i in range(28)], object)
    target = Target("label", "class", codes, ("a", "b", "c"))
    table = SampleTable(
        key, np.arange(28)[:, None], np.full(28, "train", object), {"label": target}, group=group
    )
    for seed in range(20):
        sets = labelled_splits(table, "label", val_fraction=0.4, seed=seed)
        assert set(codes[sets.rows["train"]]) == {0, 1, 2}
        assert len(sets.rows["val"])
        assert not set(group[sets.rows["train"]]) & set(group[sets.rows["val"]])
