"""`train` on tiny images and a small random network."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck import evaluate, train
from bottleneck.cli.main import group
from bottleneck.errors import BottleneckError, FitError, StrictError
from bottleneck.heads.artifact import load_head
from bottleneck.models.export import export
from bottleneck.trials import heads
from tests.helpers.stripes import write_stripes

TINY = {"backbone": "small_cnn", "weights": "none", "depth": 2, "image_size": 32, "engine": "torch"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four classes of stripes in train, val and test."""
    folder = write_stripes(tmp_path_factory.mktemp("source") / "줄무늬", images=12, val=6)
    for path in [path for number in (8, 9) for path in (folder / "train").glob(f"*/{number}.png")]:
        to = folder / "test" / path.parent.name / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    return folder


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    return train(source, tmp_path_factory.mktemp("trained") / "m.safetensors", **TINY)


def test_every_stage_was_tried_and_one_is_chosen(trained):
    nodes = [each["node"] for each in trained.candidates]
    assert nodes == ["bottleneck", "features.block1@avg2", "features@avg2"]
    assert [each for each in trained.candidates if each["chosen"]] == [trained.chosen]
    for each in trained.candidates:  # 40 samples of train, 24 of val
        pooled = (40 * each["cv_accuracy"] + 24 * each["val_accuracy"]) / 64
        assert each["pooled"] == pytest.approx(pooled)


def test_the_accuracy_on_test_is_that_of_the_model_s_predictions(source, trained):
    paths = sorted((source / "test").glob("*/*.png"))
    predicted = trained.predict(*paths)
    right = [record["label"] == path.parent.name for record, path in zip(predicted, paths, strict=True)]
    assert len(right) == trained.samples["test"] == 8
    assert trained.accuracy["test"] == pytest.approx(np.mean(right))
    low, high = trained.accuracy_ci95["test"]
    assert low <= trained.accuracy["test"] <= high


def test_the_model_has_learnt_from_train_and_val(trained):
    head = load_head(trained.model)
    assert head.n_train == 64
    assert head.settings["fitted_on"] == ["train", "val"]
    assert set(trained.accuracy) == {"train", "val", "test"}


def test_the_accuracy_on_val_is_of_a_head_that_has_not_seen_it(trained):
    assert trained.accuracy["val"] == trained.chosen["val_accuracy"]


def test_the_model_is_taken_by_evaluate_and_export(source, trained, tmp_path):
    found = evaluate(trained.model, source, split="test")
    assert found["accuracy"] == pytest.approx(trained.accuracy["test"])
    written = export(trained.model, format="torch", output=tmp_path / "m.pt2")
    assert written.max_difference < 1e-3


def test_the_card_and_the_table_tell_what_was_tried(trained):
    with open(trained.files["card"], encoding="utf-8") as file:
        card = file.read()
    with open(trained.files["table"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == [each["node"] for each in trained.candidates]
    assert [row["chosen"] for row in rows].count("True") == 1
    for row in rows:
        assert f"tried: head on {row['node']}" in card
        assert float(row["pooled"]) > 0
    with open(trained.files["table_json"], encoding="utf-8") as file:
        assert json.load(file) == trained.candidates


def test_labels_of_test_change_nothing_but_the_accuracy_on_test(source, tmp_path):
    """The same images in two lists, which differ in the labels of test alone."""
    names = sorted(path.name for path in (source / "train").iterdir())
    found = []
    for shift in (0, 1):
        rows = [
            (path, names[(names.index(path.parent.name) + shift * (split == "test")) % len(names)], split)
            for split in ("train", "val", "test")
            for path in sorted((source / split).glob("*/*.png"))
        ]
        (tmp_path / f"{shift}").mkdir()
        table = write_table(tmp_path, rows, ("image", "label", "split"))
        found.append(train(table, tmp_path / f"{shift}" / "m.safetensors", **TINY))
    for each, other in zip(found[0].candidates, found[1].candidates, strict=True):
        assert {**each, "seconds": 0} == {**other, "seconds": 0}
    first, second = (load_head(result.model) for result in found)
    np.testing.assert_array_equal(first.coef, second.coef)
    assert found[0].accuracy["test"] != found[1].accuracy["test"]


def test_a_second_run_computes_nothing_and_chooses_the_same(source, trained, monkeypatch):
    tried = []
    monkeypatch.setattr(heads, "_judged", lambda *arguments: tried.append(arguments))
    again = train(source, trained.model, **TINY)
    assert tried == []
    assert again.images == {"computed": 0, "reused": 72, "failed": 0}
    assert again.candidates == trained.candidates
    assert again.accuracy == trained.accuracy


def test_a_run_that_was_killed_goes_on_with_the_next_trial(source, trained, tmp_path, monkeypatch):
    judged, done = heads._judged, []

    def killed(task, node, fit):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(node)
        return judged(task, node, fit)

    monkeypatch.setattr(heads, "_judged", killed)
    with pytest.raises(KeyboardInterrupt):
        train(source, tmp_path / "m.safetensors", **TINY)
    before = list(done)
    done.clear()
    monkeypatch.setattr(heads, "_judged", lambda *arguments: done.append(arguments[1]) or judged(*arguments))
    found = train(source, tmp_path / "m.safetensors", **TINY)
    assert (len(before), len(done)) == (2, 1)
    assert not set(before) & set(done)
    for each, other in zip(found.candidates, trained.candidates, strict=True):
        assert {**each, "seconds": 0} == {**other, "seconds": 0}


def test_without_val_and_test_it_says_so(tmp_path):
    write_stripes(tmp_path / "stripes", images=10, val=0)
    found = train(tmp_path / "stripes" / "train", tmp_path / "m.safetensors", **TINY)
    codes = {note.code for note in found.notes}
    assert {"chosen-without-val", "no-test", "chosen"} <= codes
    assert set(found.accuracy) == {"train"}
    assert found.chosen["val_accuracy"] is None


def test_several_backbones_are_compared_the_first_is_preferred(source, tmp_path):
    settings = {**TINY, "backbone": ["small_cnn", "resnet18"], "depth": None, "image_size": 64}
    found = train(source, tmp_path / "m.safetensors", **settings)
    assert {each["backbone"] for each in found.candidates} == {"small_cnn", "resnet18"}
    assert found.candidates[0]["backbone"] == "small_cnn"
    assert load_head(found.model).backbone["name"] == found.chosen["backbone"]
    with pytest.raises(BottleneckError, match="one file"):
        train(source, tmp_path / "m.safetensors", cache=tmp_path / "c.h5", **settings)


def write_table(folder, rows, columns):
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "list.csv"


@pytest.fixture
def greys(tmp_path):
    """Forty grey images by brightness: (file, brightness)."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(40):
        level = int(rng.integers(20, 230))
        pixels = np.clip(rng.normal(level, 8, (16, 16)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        found.append((f"{number}.png", level))
    return found


def test_a_regression_is_chosen_and_measured_by_r2(greys, tmp_path):
    rows = [(name, level / 3, "test" if i % 4 == 0 else "train") for i, (name, level) in enumerate(greys)]
    found = train(
        write_table(tmp_path, rows, ("image", "label", "split")), tmp_path / "m.safetensors", **TINY
    )
    assert found.metric == "r2"
    assert found.accuracy == {}
    records = found.predict(*(tmp_path / name for name, _ in greys[::4]))
    predicted = [record["label"] for record in records]
    answers = np.array([level / 3 for _, level in greys[::4]])
    expected = 1 - ((answers - predicted) ** 2).sum() / ((answers - answers.mean()) ** 2).sum()
    assert found.metrics["test"]["r2"] == pytest.approx(expected, abs=1e-3)
    assert found.chosen["cv_r2"] > 0.5


def test_labels_covariates_and_two_images_a_sample_are_learnt(greys, tmp_path):
    rows = [
        (a, b, "bright|wide" if level > 120 else "dark|wide", weight)
        for weight, ((a, level), (b, _)) in enumerate(pairwise(greys))
    ]
    table = write_table(tmp_path, rows, ("left", "right", "label", "weight"))
    found = train(
        table,
        tmp_path / "m.safetensors",
        image_columns=["left", "right"],
        covariate_columns=["weight"],
        label_separator="|",
        **TINY,
    )
    head = load_head(found.model)
    assert (head.target_kind, head.images_per_sample, head.covariate_names) == ("multilabel", 2, ("weight",))
    assert found.metric == "accuracy"
    assert found.chosen["cv_accuracy"] > 0.8


def test_of_several_targets_the_first_is_learnt_and_the_others_are_named(greys, tmp_path):
    rows = [(name, "ab"[level > 120], "xy"[level > 90]) for name, level in greys]
    table = write_table(tmp_path, rows, ("image", "kind", "other"))
    columns = {"label_columns": ["kind", "other"]}
    found = train(table, tmp_path / "m.safetensors", **columns, **TINY)
    assert found.target == "kind"
    (note,) = [note for note in found.notes if note.code == "target-chosen"]
    assert "'other'" in note.message
    with pytest.raises(StrictError):
        train(table, tmp_path / "m.safetensors", strict=True, **columns, **TINY)
    assert train(table, tmp_path / "m.safetensors", target="other", **columns, **TINY).target == "other"


def test_one_class_is_refused(tmp_path):
    write_stripes(tmp_path / "s", classes=1, images=4, val=0)
    with pytest.raises(FitError, match="one class"):
        train(tmp_path / "s" / "train", tmp_path / "m.safetensors", **TINY)


def test_images_that_are_all_broken_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "s" / name).mkdir(parents=True)
        (tmp_path / "s" / name / "x.png").write_bytes(b"no image")
    with pytest.raises(BottleneckError):
        train(tmp_path / "s", tmp_path / "m.safetensors", **TINY)


def test_a_model_s_name_must_end_in_safetensors(source, tmp_path):
    with pytest.raises(BottleneckError, match=r"ends in \.safetensors"):
        train(source, tmp_path / "m.bin", **TINY)


def test_the_command_prints_what_was_tried_and_what_comes_next(source, trained):
    words = ["train", str(source), "-o", trained.model, "--backbone", "small_cnn", "--weights", "none"]
    words += ["--depth", "2", "--image-size", "32", "--engine", "torch"]
    shown = CliRunner().invoke(group, words, catch_exceptions=False)
    assert shown.exit_code == 0
    assert f"Next: bottleneck predict {trained.model}" in shown.output
    assert shown.output.count("→") == 1
    values = json.loads(CliRunner().invoke(group, [*words, "--json"], catch_exceptions=False).stdout)
    assert {"model", "chosen", "candidates", "accuracy", "accuracy_ci95", "seconds", "notes"} <= set(values)
    assert values["candidates"] == trained.candidates
