"""`train` on tiny images and a small random network."""

import csv
import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck import FeatureCache, evaluate, train
from bottleneck.cli import train as cli_train
from bottleneck.cli.main import group
from bottleneck.errors import BottleneckError, FingerprintError, FitError, StrictError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.heads.artifact import load_head
from bottleneck.models.export import export
from bottleneck.records import config_from
from bottleneck.report.page import report
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train import budget, features, plan
from bottleneck.studies.train.budget import Clock
from bottleneck.studies.train.result import copies_notes
from bottleneck.studies.train.train import plan_training
from bottleneck.trials import finetuning, heads
from tests.helpers.stripes import write_stripes
from tests.studies.train.conftest import TINY


def test_every_stage_was_tried_and_one_is_chosen(trained):
    nodes = [each["node"] for each in trained.candidates]
    assert nodes[:3] == ["bottleneck", "features.block1@avg2", "features@avg2"]
    assert nodes[-1] == "features.block1@avg2+features@avg2+bottleneck"
    assert len(nodes) == 5  # the best two side by side, and all three
    kinds = [each["kind"] for each in trained.candidates]
    assert kinds == ["head", "node", "node", "combined", "combined"]
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
    assert len(head.novelty.scores) == len(head.conformal.scores) == 64
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
        assert f"tried: {row['what']}" in card
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
    assert (len(before), len(done)) == (2, 3)
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


def test_a_choice_is_kept_while_few_samples_are_new_and_made_again_when_many_are(
    source, tmp_path, monkeypatch
):
    grown = shutil.copytree(source, tmp_path / "grown")
    first = train(grown, tmp_path / "m.safetensors", **TINY)
    tried, judged = [], heads._judged
    monkeypatch.setattr(heads, "_judged", lambda *given: tried.append(given[1]) or judged(*given))
    write_stripes(tmp_path / "more", classes=5, images=12, val=0)
    shutil.copytree(
        tmp_path / "more" / "train" / "class4", grown / "train" / "class4"
    )  # 12 of 64 new samples
    found = train(grown, tmp_path / "m.safetensors", **TINY)
    assert tried == [first.chosen["node"]]
    assert [each["node"] for each in found.candidates if "earlier" not in each] == tried
    assert len(found.candidates) == len(first.candidates)
    assert found.images["computed"] == 12
    assert load_head(found.model).class_names == tuple(f"class{k}" for k in range(5))
    (note,) = [note for note in found.notes if note.code == "choice-kept"]
    assert note.details == {"changed": 12, "of": 64, "new": 12, "gone": 0, "relabelled": 0}
    shutil.copytree(tmp_path / "more" / "train" / "class3", grown / "train" / "class5")  # now 24
    again = train(grown, tmp_path / "m.safetensors", **TINY)
    assert len(again.candidates) == 5
    assert "choice-kept" not in {note.code for note in again.notes}


def test_what_the_minutes_do_not_allow_is_left_out_and_told(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "allows", lambda clock, seconds: False)
    found = train(source, tmp_path / "m.safetensors", minutes=60, **TINY)
    assert [each["node"] for each in found.candidates] == ["bottleneck"]
    (note,) = [note for note in found.notes if note.code == "candidates-left-out"]
    assert note.details["left_out"][:2] == ["head on features@avg2", "head on features.block1@avg2"]
    with pytest.raises(StrictError):
        train(source, tmp_path / "m.safetensors", minutes=60, strict=True, **TINY)


def test_the_command_for_a_report_that_was_left_out_names_the_caches_and_the_page(trained):
    page, _, (note,) = cli_train._report(None, trained, {"minutes": 0.01})
    assert page is None
    assert note["code"] == "report-left-out"
    cache, written = trained.files["cache small_cnn"], Path(trained.model).with_suffix(".html")
    command = shlex.join(["bottleneck", "report", trained.model, cache, "-o", str(written)])
    assert f": {command} makes it." in note["message"]


def test_a_report_that_fails_is_a_note_and_a_defect_of_ours_is_not(trained, monkeypatch):
    def raises(error):
        def write(*_, **__):
            raise error

        monkeypatch.setattr(report, "write_report", write)
        options = {"minutes": None, "weights": None, "trust_code": False}
        return cli_train._report(None, trained, options)

    page, _, (note,) = raises(OSError("No space left on device"))
    assert (page, note["code"]) == (None, "report-not-written")
    with pytest.raises(TypeError):
        raises(TypeError("a defect"))


def test_a_plan_writes_nothing_and_names_what_would_be_done(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", str(source), "--plan", "--backbone", "small_cnn", "--weights", "none", "--depth", "2"]
    words += ["--image-size", "32", "--engine", "torch", "--json"]
    planned = json.loads(CliRunner().invoke(group, words, catch_exceptions=False).stdout)
    assert list(tmp_path.iterdir()) == []
    (cost,) = planned["extraction"]
    assert (cost["images"], planned["samples"], planned["heads"]) == (72, 72, 3)
    assert cost["bytes"] >= 72 * 2 * sum(int(np.prod(shape)) for shape in cost["nodes"].values())
    parts = planned["startup_seconds"] + planned["head_seconds"] + cost["seconds"]
    assert planned["seconds"] == pytest.approx(parts)
    assert planned["startup_seconds"] > cost["startup"] > 0
    assert cost["known_by"] == "measured on 48 images"
    assert (planned["finetuning"], planned["tuning_seconds"]) == (False, 0)
    assert "10 train samples a class" in planned["not_finetuned"]
    assert planned["saved_first"][0] == "fine-tuning"


def test_a_plan_after_a_run_knows_the_time_of_an_image_from_it_and_times_a_step_of_tuning(
    source, trained, monkeypatch
):
    for module in (budget, plan):
        monkeypatch.setattr(module, "seconds_an_image", None)  # nothing is measured again
    options = {name: value for name, value in TINY.items() if name != "backbone"}
    extraction, config = config_from(ExtractConfig, options), TrainConfig(finetune="always")
    planned = plan_training(source, trained.model, backbone="small_cnn", extraction=extraction, config=config)
    (cost,) = planned.extraction
    assert (cost.images, cost.seconds, cost.known_by) == (0, 0, "nothing is new")
    assert planned.tuning_seconds > 72 * cost.per_image > 0
    with FeatureCache(trained.files["cache small_cnn"]) as cache:
        map_shape = (8, 15, 15)  # of the block below the last one
        assert planned.tuning_bytes == len(cache.images) * 2 * int(np.prod(map_shape))


def test_images_of_one_split_that_are_in_another_are_told():
    digest = np.arange(6, dtype=np.uint8)[:, None] % 4  # images 4 and 5 are copies of 0 and 1
    cache = SimpleNamespace(images=SimpleNamespace(digest=digest), path="c.h5")
    samples = SimpleNamespace(image=np.arange(6)[:, None])
    rows = {"train": np.array([0, 1, 2]), "val": np.array([3]), "test": np.array([4, 5])}
    (note,) = copies_notes(SimpleNamespace(cache=cache, samples=samples, rows=rows))
    assert note.details == {"copies": {"train and test": 2}}
    assert "bottleneck audit c.h5" in note.message
    assert copies_notes(SimpleNamespace(cache=cache, samples=samples, rows={"train": np.arange(4)})) == []


def test_another_folder_with_the_same_model_is_refused_with_the_flags_of_train(trained, tmp_path):
    other = write_stripes(tmp_path / "줄무늬", images=4, val=0)
    with pytest.raises(FingerprintError) as refused:
        train(other, trained.model, **TINY)
    assert "Give the model another name with -o; or delete " in refused.value.hint
    assert "source-moved" not in str(refused.value)


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
        **TINY | {"depth": 1},
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
    page = Path(trained.model).with_suffix(".html")
    assert f"Report: {page}" in shown.output
    assert trained.chosen["what"] in page.read_text("utf-8")
    shares = re.search(r"cross-validation .*?(0\.\d+) ", shown.output)
    card = Path(trained.model).with_suffix(".md").read_text("utf-8")
    assert float(shares[1]) == pytest.approx(trained.cross_validation["accuracy"], abs=1e-4)
    assert f"| cross-validation | 64 | {trained.cross_validation['accuracy']:.4f} |" in card
    assert re.search(r"class3 +│ +10 │ +6 │ +2 ", shown.output), "classes by split"
    page.unlink()
    words += ["--no-report", "--json"]
    values = json.loads(CliRunner().invoke(group, words, catch_exceptions=False).stdout)
    assert values["report"] is None
    assert not page.exists()
    assert {"model", "chosen", "candidates", "accuracy", "accuracy_ci95", "seconds", "notes"} <= set(values)
    assert values["candidates"] == trained.candidates


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """The tuned block is judged better than the heads: its held-out logits are replaced by the answers."""
    folder = tmp_path_factory.mktemp("tuned")
    held_out = finetuning.OpenTuning.held_out_logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "EPOCHS", 2)

        def answered(tune, train, held):
            logits = held_out(tune, train, held)
            return 9.0 * np.eye(logits.shape[1], dtype=np.float32)[tune.task.target.values[held]]

        patch.setattr(finetuning.OpenTuning, "held_out_logits", answered)
        yield train(source, folder / "m.safetensors", finetune="always", **TINY)


def test_a_tuned_block_is_chosen_where_its_evidence_is_better(tuned):
    assert tuned.chosen["kind"] == "finetuned"
    assert (tuned.chosen["cv_accuracy"], tuned.chosen["val_accuracy"]) == (1.0, 1.0)


def test_the_tuned_model_has_learnt_from_train_and_val_and_predicts(source, tuned):
    head = load_head(tuned.model)
    assert head.n_train == 64
    assert head.settings["finetuned"]["unfrozen"]
    assert head.novelty is None, "features of the trained network are no longer those of new images"
    assert 24 <= len(head.conformal.scores) <= 64
    paths = sorted((source / "test").glob("*/*.png"))
    predicted = tuned.predict(*paths)
    right = [record["label"] == path.parent.name for record, path in zip(predicted, paths, strict=True)]
    assert tuned.accuracy["test"] == pytest.approx(np.mean(right))
    assert evaluate(tuned.model, source, split="test")["accuracy"] == pytest.approx(np.mean(right))


def test_a_tuned_block_that_is_no_better_on_val_is_not_trained_on_the_folds(source, tmp_path, monkeypatch):
    parts = []

    def wrong(tune, train, held):
        parts.append((len(train), len(held)))
        codes = tune.task.target.values[held]
        return np.eye(4, dtype=np.float32)[(codes + 1) % 4]

    monkeypatch.setattr(finetuning.OpenTuning, "held_out_logits", wrong)
    found = train(source, tmp_path / "m.safetensors", finetune="always", **TINY)
    assert parts == [(40, 24)]  # val was held out, and that was all
    (row,) = [each for each in found.candidates if each["kind"] == "finetuned"]
    assert (row["val_accuracy"], row["cv_accuracy"], row["chosen"]) == (0.0, None, False)


def test_tuning_stops_where_what_was_held_out_so_far_is_no_better(source, tmp_path, monkeypatch):
    """Right on val, which has 24 samples, then wrong on folds of 8."""
    parts = []

    def right_on_val(tune, train, held):
        parts.append(len(held))
        codes = tune.task.target.values[held]
        return np.eye(4, dtype=np.float32)[codes if len(parts) == 1 else (codes + 1) % 4]

    monkeypatch.setattr(finetuning.OpenTuning, "held_out_logits", right_on_val)
    found = train(source, tmp_path / "m.safetensors", finetune="always", **TINY)
    (row,) = [each for each in found.candidates if each["kind"] == "finetuned"]
    assert 24 < sum(parts) < 64
    assert row["pooled"] == 24 / sum(parts)
    assert not row["chosen"]


def test_no_more_folds_are_tuned_than_give_enough_samples(source, tmp_path, monkeypatch):
    parts = []

    def right(tune, train, held):
        parts.append(len(held))
        return 9.0 * np.eye(4, dtype=np.float32)[tune.task.target.values[held]]

    monkeypatch.setattr(finetuning.OpenTuning, "held_out_logits", right)
    monkeypatch.setattr(finetuning.OpenTuning, "seconds", lambda *_: 1e9)  # no clock where no minutes are set
    monkeypatch.setattr(finetuning, "ENOUGH", 30)
    monkeypatch.setattr(finetuning, "EPOCHS", 1)
    found = train(source, tmp_path / "m.safetensors", finetune="always", **TINY)
    assert parts == [24, 8]
    assert found.chosen["kind"] == "finetuned"


def test_few_samples_are_not_tuned_by_themselves_and_it_says_why(trained):
    (note,) = [note for note in trained.notes if note.code == "not-finetuned"]
    assert "10 train samples a class" in note.message


def test_a_regression_cannot_be_tuned_which_is_said_before_an_image_is_computed(greys, tmp_path, monkeypatch):
    table = write_table(tmp_path, [(name, level / 3) for name, level in greys], ("image", "label"))
    monkeypatch.setattr(features, "run_extraction", None)
    with pytest.raises(FitError, match="regression"):
        train(table, tmp_path / "m.safetensors", finetune="always", **TINY)
