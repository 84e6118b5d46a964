"""What heads learn from: too few samples, classes or groups are named, and solved where that can be."""

import csv

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bottleneck.errors import FitError, StrictError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.heads.artifact import apply_link, load_head
from bottleneck.names import HEAD_KINDS
from bottleneck.samples import SampleTable, Target
from tests.helpers.caches import D, class_target, write_cache
from tests.helpers.problems import features


def fit(tmp_path, X, y, **options):
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)], **options)
    return fit_heads(cache, C=0.1, output=tmp_path / "heads")


def test_one_class(tmp_path):
    X, _ = features(20, D, 2)
    with pytest.raises(FitError, match="are of one class, 'c0'"):
        fit(tmp_path, X, np.zeros(20, int))


@pytest.mark.parametrize("row", [0, 9])
def test_quantities_that_no_head_can_store(row, tmp_path):
    """Their squares overflow, in train as in a split that is measured."""
    X, _ = features(10, D, 2)
    values = np.arange(10) + 0.5
    values[row] = -1e200
    target = Target("weight", "regression", values)
    cache = write_cache(tmp_path / "x.h5", X, [target], split=["train"] * 8 + ["val"] * 2)
    with pytest.raises(FitError, match=r"'weight' has values up to 1e\+200; expected at most 1e\+24"):
        fit_heads(cache, output=tmp_path / "heads")


def test_fewer_samples_than_folds(tmp_path):
    X, y = features(4, D, 2)
    y[:] = [0, 1, 0, 1]
    result = fit(tmp_path, X, y)
    assert any("too few samples for 5 folds: 2 were used" in str(note) for note in result.notes)
    assert result.heads[0]["cv_accuracy"] is not None


def test_a_rare_class(tmp_path):
    X, y = features(60, D, 2)
    y[0] = 2
    result = fit(tmp_path, X, y)
    assert any("'c2' with fewer than 5 training samples" in str(note) for note in result.notes)
    assert result.heads[0]["n"] == 60


def test_a_group_in_one_class_only(tmp_path):
    X, y = features(60, D, 3)
    group = np.array([f"g{i % 10}" for i in range(60)], object)
    group[y == 2] = "lone"
    result = fit(tmp_path, X, y, group=group)
    assert any("all samples of 'c2' are of one group" in str(note) for note in result.notes)


def test_one_group(tmp_path):
    X, y = features(30, D, 2)
    result = fit(tmp_path, X, y, group=np.full(30, "all", object))
    (record,) = result.heads
    assert record["cv_accuracy"] is None
    assert record["out_of_fold"] is None
    assert any("one group only" in str(note) for note in result.notes)


def test_one_class_in_a_fold(tmp_path):
    X, y = features(30, D, 2)
    y[:] = 0
    y[3] = 1
    result = fit(tmp_path, X, y)
    assert any("one class only when fold" in str(note) for note in result.notes)
    assert load_head(result.heads[0]["path"]).predict(X)[3] in (0, 1)


def test_no_training_samples(tmp_path):
    X, y = features(20, D, 2)
    with pytest.raises(FitError, match="no sample in the train split"):
        fit(tmp_path, X, y, split=["test"] * 20)


def test_no_labels(tmp_path):
    X, _ = features(20, D, 2)
    with pytest.raises(FitError, match="holds no labels"):
        fit_heads(write_cache(tmp_path / "x.h5", X, []), output=tmp_path)


SPLITS = ["train"] * 60 + ["val"] * 20 + ["test"] * 10
NEVER = ("aa", "cz", "zz")  # names before, between and after those of the classes


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A cache of 90 samples and their features and classes; 60 of them are in train."""
    X, y = features(90, D, 3)
    return write_cache(tmp_path_factory.mktemp("wide") / "x.h5", X, [class_target(y)], SPLITS), X, y


def fitted(cache, folder, rows, **options):
    """Write a labels file of (key, cell) pairs, and fit on it."""
    folder.mkdir(exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "kind"), *rows])
    return fit_heads(cache, labels=folder / "labels.csv", output=folder / "heads", **options)


def keys(count):
    return [f"그림/{i:03d}.png" for i in range(count)]


@example(outside=["cz", "aa", "c0"] * 10, elsewhere=["zz"], kinds=("mlp",))
@given(
    outside=st.lists(st.sampled_from(("", "c0", "c1", *NEVER)), min_size=30, max_size=30),
    elsewhere=st.lists(st.sampled_from(NEVER), max_size=4),
    kinds=st.just(tuple(kind for kind in HEAD_KINDS if kind != "mlp")),
)
@settings(max_examples=3)
def test_classes_that_train_lacks_leave_every_head_as_without(
    wide, tmp_path_factory, outside, elsewhere, kinds
):
    cache, _, y = wide
    folder = tmp_path_factory.mktemp("heads")
    cells = [f"c{code}" for code in y[:60]] + outside
    without = [cell if cell not in NEVER else "" for cell in cells]
    rows = [*zip(keys(90), cells, strict=True), *((f"gone{i}.png", name) for i, name in enumerate(elsewhere))]
    options = {"head": kinds, "C": (1e-3, 1e-1), "cv": 2, "targets": ()}  # as from the command line
    with_them = fitted(cache, folder / "with", rows, **options)
    plain = fitted(cache, folder / "without", list(zip(keys(90), without, strict=True)), **options)
    counts = {name: cells.count(name) for name in {*cells, *elsewhere} & {*NEVER}}
    for wider, narrow in zip(with_them.heads, plain.heads, strict=True):
        one, other = load_head(wider["path"]), load_head(narrow["path"])
        assert one.class_names == other.class_names == ("c0", "c1", "c2")
        assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
        assert (one.C, one.temperature) == (other.C, other.temperature)
        assert wider["accuracy"] == narrow["accuracy"]
        assert wider.get("unseen", {}) == counts
    notes = [note for note in with_them.notes if note.code == "classes-without-training-samples"]
    assert [note.details["unseen"] for note in notes] == ([counts] if counts else [])
    assert all(note.changes_result for note in notes)


def test_the_head_is_scikit_learns_on_the_classes_of_train(wide, tmp_path):
    cache, X, y = wide
    rows = [(key, f"c{code}") for key, code in zip(keys(60), y, strict=False)]
    result = fitted(cache, tmp_path, [*rows, (keys(90)[70], "b"), ("gone.png", "a")], C=0.1)
    head = load_head(result.heads[0]["path"])
    Z = StandardScaler().fit(X[:60]).transform(X)
    judge = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(Z[:60], y[:60])
    expected = judge.predict_proba(Z)
    assert np.allclose(apply_link(head.decision(X), head.link), expected, atol=2e-3)
    assert result.heads[0]["unseen"] == {"a": 0, "b": 1}
    (text,) = (note.message for note in result.notes if note.code == "classes-without-training-samples")
    assert "these classes take no part in the fit, and 1 answer in another split is not measured." in text


def test_strict_refuses_to_leave_classes_out(wide, tmp_path):
    cache, _, y = wide
    cells = [f"c{code}" for code in y[:60]] + ["b"] * 30
    with pytest.raises(
        StrictError,
        match=r"'b' with no training sample: this class takes no part .* 30 answers in other splits are",
    ):
        fitted(cache, tmp_path, list(zip(keys(90), cells, strict=True)), strict=True)
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_labels_that_train_lacks_leave_the_others_as_without(tmp_path, kind):
    X, y = features(90, D, 3)
    bits = np.stack([y == 0, np.arange(90) == 70, y >= 1, np.zeros(90)], axis=1).astype(np.uint8)
    wider = Target("bits", "multilabel", bits, ("zero", "only in val", "more", "nowhere"))
    narrow = Target("bits", "multilabel", bits[:, [0, 2]], ("zero", "more"))
    heads = []
    for number, target in enumerate((wider, narrow)):
        cache = write_cache(tmp_path / f"{number}.h5", X, [target], SPLITS)
        heads += fit_heads(cache, head=kind, output=tmp_path / "heads").heads
    one, other = (load_head(record["path"]) for record in heads)
    assert one.class_names == other.class_names == ("zero", "more")
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    assert one.temperature == other.temperature
    assert heads[0]["accuracy"] == heads[1]["accuracy"]
    assert heads[0]["unseen"] == {"only in val": 1, "nowhere": 0}


def test_weights_by_code_follow_their_classes(tmp_path):
    """Codes are those of the cache, whose first class has no train sample."""
    X, y = features(90, D, 2)
    wider = write_cache(tmp_path / "wide.h5", X, [class_target(y + 1)], SPLITS)
    narrow = write_cache(tmp_path / "narrow.h5", X, [class_target(y)], SPLITS)
    options = {"C": 0.1, "output": tmp_path / "heads"}
    one = fit_heads(wider, class_weight={0: 7.0, 2: 5.0}, **options).heads[0]["path"]
    other = fit_heads(narrow, class_weight={1: 5.0}, **options).heads[0]["path"]
    assert np.array_equal(load_head(one).coef, load_head(other).coef)


@given(st.data())
def test_codes_and_counts_agree_with_counting(data):
    n, K = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    codes = np.array(data.draw(st.lists(st.integers(-1, K - 1), min_size=n, max_size=n)))
    split = np.array(
        data.draw(st.lists(st.sampled_from(["train", "val", "test"]), min_size=n, max_size=n)), object
    )
    names = tuple(f"k{code}" for code in range(K))
    key = np.array(keys(n), object)
    table = SampleTable(key, np.arange(n)[:, None], split, {"label": Target("label", "class", codes, names)})
    reduced, notes = with_training_classes(table)
    trained = {names[code] for code, part in zip(codes, split, strict=True) if part == "train" and code >= 0}
    target = reduced.targets["label"]
    assert set(target.class_names) == trained
    named = [None if code < 0 else target.class_names[code] for code in target.values]
    given_names = [None if code < 0 else names[code] for code in codes]
    assert named == [name if name in trained else None for name in given_names]
    unseen = {name: given_names.count(name) for name in names if name not in trained}
    assert [note.details["unseen"] for note in notes] == ([unseen] if unseen else [])
    again, more = with_training_classes(reduced)
    assert (again.targets["label"].class_names, more) == (target.class_names, [])


def test_a_label_of_all_training_samples_is_noted(tmp_path):
    X, y = features(60, D, 2)
    bits = np.stack([y == 0, np.ones(60)], axis=1).astype(np.uint8)
    cache = write_cache(tmp_path / "x.h5", X, [Target("bits", "multilabel", bits, ("zero", "always"))])
    result = fit_heads(cache, C=0.1, output=tmp_path / "heads")
    assert "labels-of-all-samples" in [note.code for note in result.notes]
    head = load_head(result.heads[0]["path"])
    assert (head.predict(X)[:, 1] == 1).all()
