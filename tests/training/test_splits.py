"""Which samples train and which choose: labels, splits, groups."""

import numpy as np
import pytest

from bottleneck.errors import FitError
from bottleneck.samples import SampleTable, Target
from bottleneck.training.splits import labelled_splits


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
