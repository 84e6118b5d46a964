"""What the result of `train` tells of the splits that chose and measured."""

from types import SimpleNamespace

import numpy as np

from bottleneck.samples import Target
from bottleneck.studies.train.result import split_notes


def test_classes_without_a_sample_in_a_split_are_named():
    values = np.array([0, 1, 2, 0, 1, 0, -1])
    rows = {"train": np.arange(3), "val": np.array([3, 4]), "test": np.array([5, 6])}
    task = SimpleNamespace(rows=rows, target=Target("label", "class", values, ("개미", "벌", "c")))
    found = [note.details for note in split_notes(task) if note.code == "classes-not-measured"]
    assert found == [{"split": "val", "classes": ["c"]}, {"split": "test", "classes": ["벌", "c"]}]
