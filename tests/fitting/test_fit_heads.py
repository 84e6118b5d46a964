"""fit_heads on caches written for the purpose: nodes, kinds, folds, files, and what cannot be asked."""

import csv
import json

import numpy as np
import pytest

from bottleneck.errors import CacheError, EngineError, FitError, SourceError, StrictError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import apply_link, load_head
from bottleneck.heads.logistic import sweep
from bottleneck.report.curves import head_curves
from bottleneck.samples import ArrayRows, Target
from bottleneck.store.reader import FeatureCache
from tests.helpers.caches import D, class_target, write_cache
from tests.helpers.problems import features, question


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """180 samples of three classes, the last 60 held out for test."""
    X, y = features(180, D, 3)
    split = np.repeat(["train", "test"], [120, 60])
    folder = tmp_path_factory.mktemp("world")
    noise = np.random.default_rng(1).standard_normal((180, 6)).astype(np.float32)
    cache = write_cache(folder / "digits.h5", X, [class_target(y)], split, more={"blocks.0": noise})
    return cache, X, y


def test_heads_are_fitted_measured_and_written(world, tmp_path):
    cache, X, y = world
    result = fit_heads(cache, nodes=["bottleneck"], output=tmp_path)
    (record,) = result.heads
    assert record["head"] == "logistic"
    assert record["n"] == 120
    assert record["accuracy"].keys() == {"train", "test"}
    low, high = record["accuracy_ci95"]["test"]
    assert low < record["accuracy"]["test"] < high
    assert 0.6 < record["cv_accuracy"] <= 1
    head = load_head(record["path"])
    assert (head.predict(X[120:]) == y[120:]).mean() == record["accuracy"]["test"]
    with FeatureCache(cache) as opened:
        assert head.node_fingerprint == opened.nodes["bottleneck"].fingerprint(opened.spec)
        assert head.fingerprint == opened.fingerprint
    json.dumps(result.to_json())


def test_the_test_split_has_no_say(world, tmp_path):
    """The head is the one that a sweep of the train rows alone gives."""
    cache, X, y = world
    (record,) = fit_heads(cache, nodes=["bottleneck"], output=tmp_path).heads
    asked = question(y[:120], 3, folds=5)
    (fitted,) = sweep(ArrayRows(X[:120]), [asked], np.logspace(-6, 0, 13))
    head = load_head(record["path"])
    assert pytest.approx(fitted.C) == head.C
    assert np.allclose(head.coef, fitted.arrays["coef"], rtol=1e-3, atol=1e-5)


def test_out_of_fold_logits_are_kept(world, tmp_path):
    cache, _, y = world
    (record,) = fit_heads(cache, nodes=["bottleneck"], output=tmp_path).heads
    with np.load(record["out_of_fold"], allow_pickle=False) as kept:
        assert kept["logits"].shape == (120, 3)
        assert (kept["values"] == y[:120]).all()
        assert kept["sample"][5] == "그림/005.png"
        assert set(kept["fold"]) == set(range(5))
        hits = kept["logits"].argmax(axis=1) == y[:120]
        assert hits.mean() == pytest.approx(record["cv_accuracy"])
        p = apply_link(kept["logits"], "softmax", record["temperature"])
    assert -np.log(p[np.arange(120), y[:120]]).mean() == pytest.approx(record["log_loss"]["cv"])


def test_several_nodes_give_the_probe_curve(world, tmp_path):
    cache, _, _ = world
    result = fit_heads(cache, head=["logistic", "nearest-mean"], C=0.01, output=tmp_path)
    assert [(r["node"], r["head"]) for r in result.heads] == [
        (node, head) for node in ("blocks.0", "bottleneck") for head in ("logistic", "nearest-mean")
    ]
    best = max(result.heads, key=lambda r: r["cv_accuracy"])
    assert best["node"] == "bottleneck"  # the other is noise
    with open(result.files["probe_curve_table"], newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    picture = head_curves(result)["probe_curve"]
    assert picture == result.files["probe_curve_table"].replace(".csv", ".png")
    with open(picture, "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_the_probe_curve_of_a_quantity_is_its_r2(tmp_path):
    X, _ = features(60, D, 2)
    target = Target("sum", "regression", X.sum(axis=1).astype(float))
    split = np.repeat(["train", "test"], [40, 20])
    cache = write_cache(tmp_path / "x.h5", X, [target], split, more={"blocks.0": X[:, :3]})
    result = fit_heads(cache, output=tmp_path)
    with open(result.files["probe_curve_table"], newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["test"]) for row in table] == [record["r2"]["test"] for record in result.heads]
    probe = result.curves["probe"]
    assert probe["series"]["sum, ridge, cross-validation"] == [record["r2"]["cv"] for record in result.heads]
    assert probe["measure"] == "R²"
    head_curves(result)  # draws without a warning


@pytest.mark.parametrize("kind", ["ridge", "knn", "nearest-mean", "mlp"])
def test_other_kinds(world, tmp_path, kind):
    cache, X, y = world
    (record,) = fit_heads(cache, nodes=["bottleneck"], head=kind, cv=3, output=tmp_path).heads
    assert record["head"] == kind
    assert record["cv_accuracy"] > 0.5
    head = load_head(record["path"])
    assert (head.predict(X[120:]) == y[120:]).mean() == record["accuracy"]["test"]


def test_the_shot_curve_rises(world, tmp_path):
    cache, _, _ = world
    result = fit_heads(cache, nodes=["bottleneck"], C=0.1, shots=[1, 20], repeats=6, output=tmp_path)
    (curve,) = result.curves["shots"]
    assert curve["shots"] == [1, 20]
    assert np.shape(curve["accuracy"]) == (2, 6)
    assert curve["mean"][1] > curve["mean"][0] + 0.1
    assert "shot_curve_table" in result.files
    assert head_curves(result).keys() == {"shot_curve"}


def test_views_train_and_plain_features_validate(tmp_path):
    """The views of a sample share its weight; copies of the plain features as views change nothing."""
    X, y = features(90, D, 3)
    views = np.repeat(X[:, None], 3, axis=1)
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)], views=views)
    (plain,) = fit_heads(cache, C=[0.01, 0.1], output=tmp_path / "plain").heads
    (viewed,) = fit_heads(cache, C=[0.01, 0.1], views=True, output=tmp_path / "views").heads
    assert viewed["C"] == plain["C"]
    assert viewed["cv_accuracy"] == pytest.approx(plain["cv_accuracy"], abs=0.02)
    a, b = load_head(plain["path"]), load_head(viewed["path"])
    assert np.allclose(a.decision(X), b.decision(X), atol=0.02)


def test_what_a_kind_of_head_cannot_use_is_said_and_left_out(tmp_path):
    """Numbers have no nearest neighbours' vote; views train heads that have a penalty."""
    X, y = features(60, D, 2)
    views = np.repeat(X[:, None], 2, axis=1)
    number = Target("age", "regression", np.linspace(0, 1, 60))
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y), number], views=views)
    result = fit_heads(cache, head=("ridge", "knn"), views=True, output=tmp_path / "heads")
    assert [(r["target"], r["head"]) for r in result.heads] == [
        ("age", "ridge"),
        ("label", "ridge"),
        ("label", "knn"),
    ]
    assert any("none is fitted to 'age'" in str(note) for note in result.notes)
    assert any("not on views" in str(note) for note in result.notes)
    with pytest.raises(FitError, match="Views train logistic and ridge heads"):
        fit_heads(cache, head="knn", targets=["label"], views=True, output=tmp_path / "heads")


def test_options_that_change_nothing_in_a_head_are_told(tmp_path):
    """One for each option and head; the heads are the same with and without it."""
    X, y = features(60, D, 2)
    number = Target("age", "regression", np.linspace(0, 1, 60))
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y), number])
    options = {"C": 0.1, "class_weight": "balanced", "multi_class": "ovr", "one_standard_error": True}
    result = fit_heads(cache, head=("logistic", "ridge", "knn", "mlp"), **options, output=tmp_path / "heads")
    told = [note.details for note in result.notes if note.code == "options-unused"]
    unused = {details["options"][0]: set(details["heads"]) for details in told}
    others, numbers = {"knn of 'label'", "mlp of 'label'"}, {"logistic of 'age'", "ridge of 'age'"}
    assert unused["C"] == unused["one_standard_error"] == others
    assert unused["class_weight"] == {"knn of 'label'", *numbers}
    assert unused["multi_class"] == {*others, *numbers, "ridge of 'label'"}
    plain = fit_heads(cache, head="logistic", targets=["label"], output=tmp_path / "plain")
    assert "options-unused" not in {note.code for note in plain.notes}
    with pytest.raises(StrictError, match="class_weight changes nothing in these heads: knn of 'label'"):
        fit_heads(
            cache, head="knn", targets=["label"], class_weight="balanced", strict=True, output=tmp_path / "no"
        )


def test_a_label_of_all_samples_is_no_lack_of_convergence(tmp_path):
    X, y = features(60, D, 2)
    tags = Target(
        "tags", "multilabel", np.stack([y, np.ones(60, int)], axis=1).astype(np.uint8), ("b", "all")
    )
    cache = write_cache(tmp_path / "x.h5", X, [tags])
    result = fit_heads(cache, C=0.1, output=tmp_path / "heads")
    told = {note.code for note in result.notes}
    assert "labels-of-all-samples" in told
    assert "not-converged" not in told


def test_classes_with_fewer_samples_than_shots_are_told(tmp_path):
    X, y = features(60, D, 2)
    y[:] = 0
    y[:3], y[3:13] = 1, 2
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)])
    result = fit_heads(cache, C=0.1, shots=[1, 5], repeats=2, output=tmp_path / "heads")
    (note,) = [note for note in result.notes if note.code == "fewer-shots"]
    assert list(note.details["classes"].values()) == [3]


def test_names_that_a_file_system_cannot_tell_apart_are_files_of_their_own(tmp_path):
    X, y = features(40, D, 2)
    names = ("a b", "a/b", "A_b", "x" * 200, "x" * 201)
    cache = write_cache(tmp_path / "c.h5", X, [class_target(y, name) for name in names])
    result = fit_heads(cache, C=0.1, output=tmp_path / "heads")
    assert sorted(load_head(record["path"]).target for record in result.heads) == sorted(names)
    assert len({record["path"].casefold() for record in result.heads}) == len(names)


def test_a_device_that_is_not_there_is_refused(world, tmp_path):
    with pytest.raises(EngineError, match="Device must be"):
        fit_heads(world[0], device="quantum", output=tmp_path)


def test_noisy_views_are_not_what_is_validated(tmp_path):
    X, y = features(90, D, 3)
    views = X[:, None] + 50 * np.random.default_rng(0).standard_normal((90, 2, D)).astype(np.float32)
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)], views=views)
    (record,) = fit_heads(cache, C=0.01, views=True, output=tmp_path / "heads").heads
    with np.load(record["out_of_fold"]) as kept:
        assert kept["logits"].shape == (90, 3)


def test_missing_labels_and_several_targets(tmp_path):
    X, y = features(120, D, 3)
    some = np.where(np.arange(120) % 4 == 0, -1, y)
    number = np.where(np.arange(120) % 5 == 0, np.nan, X[:, 0] + X[:, 1])
    bits = np.stack([y == 0, y >= 1], axis=1).astype(np.uint8)
    bits[:10] = 255
    targets = [
        class_target(y),
        class_target(some, "some", ("c0", "c1", "c2")),
        Target("sum", "regression", number),
        Target("bits", "multilabel", bits, ("zero", "more")),
    ]
    cache = write_cache(tmp_path / "x.h5", X, targets)
    result = fit_heads(cache, output=tmp_path / "heads")
    by_target = {record["target"]: record for record in result.heads}
    assert {name: record["n"] for name, record in by_target.items()} == {
        "label": 120,
        "some": 90,
        "sum": 96,
        "bits": 110,
    }
    assert by_target["sum"]["head"] == "ridge"
    assert by_target["sum"]["r2"]["cv"] > 0.9
    assert by_target["bits"]["cv_accuracy"] > 0.7
    assert load_head(by_target["bits"]["path"]).probabilities(X).shape == (120, 2)


def test_whole_numbers_can_be_quantities(tmp_path):
    """A column of ages reads as classes; asked for, it is a regression, and is measured as one."""
    X, _ = features(120, D, 3)
    ages = np.round(10 * X[:, 0] + 5 * X[:, 1]).astype(int)
    names = tuple(map(str, sorted(set(ages.tolist()))))
    codes = np.array([names.index(str(age)) for age in ages])
    codes[:6] = -1
    cache = write_cache(
        tmp_path / "x.h5", X, [Target("age", "class", codes, names), class_target(X[:, 2] > 1)]
    )
    (record,) = fit_heads(cache, targets=["age"], regression=["age"], output=tmp_path / "heads").heads
    assert (record["head"], record["n"]) == ("ridge", 114)
    assert record["r2"]["cv"] > 0.9
    with pytest.raises(SourceError, match="'label' is a class one of 'c0', 'c1'; a regression needs"):
        fit_heads(cache, regression=["label"], output=tmp_path)
    with pytest.raises(FitError, match="no target 'weight'"):
        fit_heads(cache, regression=["weight"], output=tmp_path)


def test_groups_keep_together(tmp_path):
    """Copies of a sample in one group: without it they would leak, with it nothing can be learned."""
    generator = np.random.default_rng(0)
    X = np.repeat(generator.standard_normal((30, 60)).astype(np.float32), 4, axis=0)
    X += 0.01 * generator.standard_normal(X.shape).astype(np.float32)
    y = np.repeat(np.arange(30) % 2, 4)
    group = np.repeat([f"g{i}" for i in range(30)], 4).astype(object)
    leaky = write_cache(tmp_path / "leaky.h5", X, [class_target(y)])
    honest = write_cache(tmp_path / "honest.h5", X, [class_target(y)], group=group)
    (a,), (b,) = (fit_heads(c, C=0.1, output=tmp_path / "heads").heads for c in (leaky, honest))
    assert a["cv_accuracy"] == 1
    assert b["cv_accuracy"] < 0.8


@pytest.mark.parametrize("kind", ["logistic", "ridge", "knn"])
def test_a_target_without_folds_stands_beside_one_with_folds(tmp_path, kind):
    """All labels of the second target are in one group, so that it cannot be cross-validated."""
    X, y = features(60, D, 2)
    group = np.repeat(["g0", "g1", "g2"], 20).astype(object)
    few = np.where(group == "g0", y, -1)
    targets = [class_target(y), class_target(few, "few", ("c0", "c1"))]
    cache = write_cache(tmp_path / "x.h5", X, targets, group=group)
    result = fit_heads(cache, head=kind, cv=3, output=tmp_path / "heads")
    label, few = sorted(result.heads, key=lambda record: record["target"], reverse=True)
    assert label["cv_accuracy"] > 0.5
    assert few["cv_accuracy"] is None
    assert few["out_of_fold"] is None
    assert few["accuracy"]["train"] > 0.5
    assert any("one group only" in str(note) for note in result.notes)


def test_constant_columns(tmp_path):
    X, y = features(60, D, 2)
    X[:, :4] = 7
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)])
    head = load_head(fit_heads(cache, C=0.1, output=tmp_path / "heads").heads[0]["path"])
    assert (head.scale[:4] == 1).all()
    assert (head.coef[:, :4] == 0).all()


def test_all_columns_constant(tmp_path):
    X, y = features(60, D, 2)
    cache = write_cache(tmp_path / "x.h5", np.ones_like(X), [class_target(y)])
    (record,) = fit_heads(cache, C=0.1, output=tmp_path / "heads").heads
    assert record["accuracy"]["train"] == pytest.approx(np.bincount(y).max() / 60)


def test_unknown_names(world, tmp_path):
    cache, _, _ = world
    with pytest.raises(FitError, match="no target 'sex'"):
        fit_heads(cache, targets=["sex"], output=tmp_path)
    with pytest.raises(CacheError, match=r"no features of node 'blocks\.9'"):
        fit_heads(cache, nodes=["blocks.9"], output=tmp_path)
    with pytest.raises(FitError, match="no head 'forest'"):
        fit_heads(cache, head="forest", output=tmp_path)
    with pytest.raises(CacheError):
        fit_heads(tmp_path / "gone.h5", output=tmp_path)
    with pytest.raises(FitError, match="leave none to measure on"):
        fit_heads(cache, shots=[500], output=tmp_path)
    with pytest.raises(FitError, match="cv is 1"):
        fit_heads(cache, cv=1, output=tmp_path)


def test_a_kind_that_answers_classes_only(tmp_path):
    X, _ = features(20, D, 2)
    cache = write_cache(tmp_path / "x.h5", X, [Target("sum", "regression", X.sum(axis=1).astype(float))])
    with pytest.raises(FitError, match="knn head predicts classes"):
        fit_heads(cache, head="knn", output=tmp_path)


UNEQUAL = np.repeat([2, 0, 1], [20, 6, 4])  # class 2 is the most frequent one


def one_answers(cache, output, **asked):
    """The answers of the notes on heads that predict one answer, by kind of head."""
    result = fit_heads(cache, output=output, **asked)
    notes = [note.details for note in result.notes if note.code == "one-answer"]
    return {details["head"]: details.get("answer") for details in notes}


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
@pytest.mark.parametrize("C", [1e-12, (1e-12, 1e-11)])
def test_a_head_whose_coefficients_vanish_is_told(kind, C, tmp_path):
    X, _ = features(30, D, 3)
    cache = write_cache(tmp_path / "c.h5", X, [class_target(UNEQUAL)])
    assert one_answers(cache, tmp_path, head=kind, C=C, cv=3) == {kind: ["c2"]}
    assert one_answers(cache, tmp_path, head=kind, C=1.0, cv=3) == {}


def test_other_kinds_of_head_tell_of_features_that_are_alike(tmp_path):
    kinds = ("logistic", "ridge", "knn", "nearest-mean")
    cache = write_cache(tmp_path / "c.h5", np.ones((30, D), np.float32), [class_target(UNEQUAL)])
    found = one_answers(cache, tmp_path, head=kinds, cv=3)
    # Without features the most frequent class is best; a nearest mean does not know what is frequent.
    assert found.pop("nearest-mean")
    assert found == {"logistic": ["c2"], "ridge": ["c2"], "knn": ["c2"]}


@pytest.mark.parametrize(("share", "answer"), [(0.1, []), (0.9, ["a", "b"])])
def test_labels_and_numbers_that_are_predicted_alike_are_told(share, answer, tmp_path):
    X, _ = features(30, D, 3)
    random = np.random.default_rng(0)
    several = Target("tags", "multilabel", (random.random((30, 2)) < share).astype(np.uint8), ("a", "b"))
    number = Target("age", "regression", 40 + X[:, 0].astype(float))
    cache = write_cache(tmp_path / "c.h5", X, [several, number])
    result = fit_heads(cache, C=1e-12, cv=3, output=tmp_path)
    notes = {note.details["target"]: note for note in result.notes if note.code == "one-answer"}
    assert notes["tags"].details["answer"] == answer
    assert "predicts nearly the mean for all 30 samples" in notes["age"].message
    assert not [n for n in fit_heads(cache, C=1.0, cv=3, output=tmp_path).notes if n.code == "one-answer"]
