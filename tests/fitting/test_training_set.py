"""What heads learn from: too few samples, classes or groups are named, and solved where that can be."""

import numpy as np
import pytest

from bottleneck.errors import FitError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import load_head
from tests.helpers.caches import D, class_target, write_cache
from tests.helpers.problems import features


def fit(tmp_path, X, y, **options):
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)], **options)
    return fit_heads(cache, C=0.1, output=tmp_path / "heads")


def test_one_class(tmp_path):
    X, _ = features(20, D, 2)
    with pytest.raises(FitError, match="are of one class, 'c0'"):
        fit(tmp_path, X, np.zeros(20, int))


def test_fewer_samples_than_folds(tmp_path):
    X, y = features(4, D, 2)
    y[:] = [0, 1, 0, 1]
    result = fit(tmp_path, X, y)
    assert any("too few samples for 5 folds: 2 were used" in note for note in result.notes)
    assert result.heads[0]["cv_accuracy"] is not None


def test_a_rare_class(tmp_path):
    X, y = features(60, D, 2)
    y[0] = 2
    result = fit(tmp_path, X, y)
    assert any("'c2' with fewer than 5 training samples" in note for note in result.notes)
    assert result.heads[0]["n"] == 60


def test_a_group_in_one_class_only(tmp_path):
    X, y = features(60, D, 3)
    group = np.array([f"g{i % 10}" for i in range(60)], object)
    group[y == 2] = "lone"
    result = fit(tmp_path, X, y, group=group)
    assert any("all samples of 'c2' are of one group" in note for note in result.notes)


def test_one_group(tmp_path):
    X, y = features(30, D, 2)
    result = fit(tmp_path, X, y, group=np.full(30, "all", object))
    (record,) = result.heads
    assert record["cv_accuracy"] is None
    assert record["out_of_fold"] is None
    assert any("one group only" in note for note in result.notes)


def test_one_class_in_a_fold(tmp_path):
    X, y = features(30, D, 2)
    y[:] = 0
    y[3] = 1
    result = fit(tmp_path, X, y)
    assert any("one class only when fold" in note for note in result.notes)
    assert load_head(result.heads[0]["path"]).predict(X)[3] in (0, 1)


def test_no_training_samples(tmp_path):
    X, y = features(20, D, 2)
    with pytest.raises(FitError, match="no sample in the train split"):
        fit(tmp_path, X, y, split=["test"] * 20)


def test_no_labels(tmp_path):
    X, _ = features(20, D, 2)
    with pytest.raises(FitError, match="holds no labels"):
        fit_heads(write_cache(tmp_path / "x.h5", X, []), output=tmp_path)
