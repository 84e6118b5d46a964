"""`audit` of a cache with planted faults, each counted by hand."""

import csv
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from bottleneck import audit, fit_heads
from bottleneck.cli.main import group
from bottleneck.errors import ArtifactError, BottleneckError, CacheError, FitError, Note
from bottleneck.heads.artifact import load_head
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.audit import judged
from bottleneck.studies.audit.copies import node_notes
from tests.helpers.caches import class_target, write_cache

N, CLASSES, WIDTH = 240, 3, 64
NAMES = ("개", "고양이", "=cow")
FLIPPED = [5, 31, 60, 101, 202]
SPLIT = np.array(["train", "train", "train", "val", "test"] * (N // 5), object)
COPIES = {200: 30, 209: 66}  # an image in train and its copy: in train, in test
OUTLIER = 90


@pytest.fixture(scope="module")
def truth():
    return np.arange(N) % CLASSES


@pytest.fixture(scope="module")
def features(truth):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(CLASSES, WIDTH))[truth] * 2 + draw.normal(size=(N, WIDTH)) + 9
    for copy, image in COPIES.items():
        x[copy] = x[image] + draw.normal(size=WIDTH) * 0.05
    x[OUTLIER] = 9 - 12 * draw.normal(size=WIDTH)
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def cache(features, truth, tmp_path_factory):
    labels = truth.copy()
    for copy, image in COPIES.items():
        labels[copy] = labels[image]
    labels[FLIPPED] = (labels[FLIPPED] + 1) % CLASSES
    group_of = np.array([f"g{i}" for i in range(N)], object)
    group_of[[2, 3]] = "=both"  # train and val
    path = tmp_path_factory.mktemp("audit") / "features.h5"
    return write_cache(path, features, [class_target(labels, names=NAMES)], split=SPLIT, group=group_of)


@pytest.fixture(scope="module")
def result(cache):
    return audit(cache)


def key(i):
    return f"그림/{i:03d}.png"


def flagged(issue):
    return [item for item in issue["items"] if item["flag"]]


def test_flipped_labels_are_flagged_with_the_label_that_they_had(result, truth):
    found = {item["sample"]: item for item in flagged(result.label_issues)}
    assert {key(i) for i in FLIPPED} <= set(found)
    assert len(found) == result.label_issues["flag"] <= len(FLIPPED) + 3
    for i in FLIPPED:
        assert found[key(i)]["suggested"] == NAMES[truth[i]]
        assert found[key(i)]["given"] == NAMES[(truth[i] + 1) % CLASSES]
    scores = [item["score"] for item in result.label_issues["items"]]
    assert scores == sorted(scores)
    test = result.label_issues["self_test"]
    assert test["found"] >= 0.8 * test["changed"] > 0
    assert len(scores) == result.samples == N


def test_flagged_labels_come_with_the_nearest_samples_of_train(result, features):
    x = features - features.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    train = np.flatnonzero(SPLIT == "train")
    for item in flagged(result.label_issues):
        i = int(item["sample"][-7:-4])
        others = train[train != i]
        nearest = others[np.argsort(-(x[others] @ x[i]))[:8]]
        assert len(item["neighbours"]) == 3
        assert {each["sample"] for each in item["neighbours"]} <= {key(j) for j in nearest}


def test_copies_with_two_labels_are_told_with_both(features, truth, tmp_path):
    labels = truth.copy()
    labels[209] = labels[66]
    labels[200] = (labels[30] + 1) % CLASSES  # the copy of 30
    path = write_cache(tmp_path / "c.h5", features, [class_target(labels, names=NAMES)], split=SPLIT)
    found = audit(path)
    (differing,) = [item for item in found.duplicates["items"] if "labels" in item]
    named = dict(zip(differing["images"], differing["labels"], strict=True))
    assert named == {key(i): NAMES[labels[i]] for i in (30, 200)}
    (note,) = [note for note in found.notes if note.code == "copies-labelled-twice"]
    assert note.details == {"pairs": 1}
    assert f"{key(200)} ({NAMES[labels[200]]})" in note.message
    printed = CliRunner().invoke(group, ["audit", str(path)], env={"COLUMNS": "120"}).stdout
    assert any(
        all(NAMES[labels[i]] in line for i in (30, 200)) for line in printed.splitlines() if " or " in line
    )


def test_copies_and_leaks_are_named(result):
    assert not [note for note in result.notes if note.code == "copies-labelled-twice"]
    pairs = {tuple(sorted(item["images"])) for item in result.duplicates["items"]}
    assert pairs == {tuple(sorted((key(image), key(copy)))) for copy, image in COPIES.items()}
    (leak,) = [item for item in result.leaks["items"] if "images" in item]
    assert (set(leak["images"]), leak["splits"]) == ({key(66), key(209)}, ["test", "train"])
    (group_leak,) = [item for item in result.leaks["items"] if "group" in item]
    assert (group_leak["group"], group_leak["splits"]) == ("=both", ["train", "val"])
    assert result.leaks["test_samples_leaked"] == 1
    n = (SPLIT == "test").sum()
    right = round(result.leaks["test_accuracy"] * n)
    without = round(result.leaks["test_accuracy_without"] * (n - 1))
    assert right - without in (0, 1)


def test_an_image_like_no_other_is_an_outlier(result):
    assert [item["image"] for item in flagged(result.outliers)] == [key(OUTLIER)]


def test_thin_classes_are_counted_in_train(cache):
    items = audit(cache, thin=1000).thin["items"]
    with FeatureCache(cache) as opened:
        labels = opened.samples.targets["label"].values
    counts = np.bincount(labels[SPLIT == "train"], minlength=CLASSES)
    assert {item["class"]: item["score"] for item in items} == dict(zip(NAMES, counts.tolist(), strict=True))
    assert all(item["flag"] for item in items)


def test_classes_that_are_one_cannot_be_told_apart(features, truth, tmp_path):
    halves = np.where(truth == 2, 2 + np.random.default_rng(0).integers(0, 2, N), truth)
    target = class_target(halves, names=("a", "b", "c", "d"))
    found = audit(write_cache(tmp_path / "c.h5", features, [target], split=SPLIT))
    (item,) = flagged(found.confusable)
    assert item["classes"] == ["c", "d"]
    assert 0.3 < item["score"] < 0.7


def test_a_head_s_own_out_of_fold_logits_judge(cache, tmp_path, result):
    (record,) = fit_heads(cache, output=tmp_path).heads
    found = audit(cache, head=record["path"])
    with np.load(record["out_of_fold"]) as stored:
        logits = stored["logits"] / load_head(record["path"]).temperature
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = p[np.arange(len(p)), stored["values"]] / p.sum(axis=1)
        scores = dict(zip(stored["sample"].tolist(), expected.tolist(), strict=True))
    items = {
        item["sample"]: item["score"] for item in found.label_issues["items"] if item["split"] == "train"
    }
    assert items == pytest.approx(scores, rel=1e-4, abs=1e-6)


def test_a_head_without_its_logits_or_of_other_features_is_refused(cache, features, tmp_path):
    (record,) = fit_heads(cache, output=tmp_path / "heads").heads
    other = write_cache(tmp_path / "o.h5", features, [class_target(np.arange(N) % 3)], dtype="float16")
    with pytest.raises(ArtifactError, match="fitted on other features"):
        audit(other, head=record["path"])
    Path(record["out_of_fold"]).write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match=r"out-of-fold\.npz cannot be read"):
        audit(cache, head=record["path"])
    Path(record["out_of_fold"]).unlink()
    with pytest.raises(ArtifactError, match="has no out-of-fold file"):
        audit(cache, head=record["path"])


def test_a_fix_repairs_the_labels_and_the_gain_is_measured(cache, truth, tmp_path):
    fixed = tmp_path / "고침.csv"
    audit(cache, fix=fixed)
    with open(fixed, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N
    labels = {row["sample"]: row["label"] for row in rows}
    assert all(labels[key(i)] == NAMES[truth[i]] for i in FLIPPED)
    assert {row["sample"] for row in rows[:5]} >= {key(i) for i in FLIPPED[:1]}
    repaired = audit(cache, repair=fixed).repair
    assert repaired["changed"] == audit(cache).label_issues["flag"]
    low, high = repaired["gain_ci95"]
    assert low <= repaired["gain"] <= high
    assert repaired["gain"] == pytest.approx(
        repaired["test_accuracy_after"] - repaired["test_accuracy_before"]
    )
    assert repaired["n"] == (SPLIT == "test").sum()


def test_a_class_that_no_other_fold_has_is_not_judged_and_keeps_its_labels(features, truth, tmp_path):
    labels = truth.copy()
    labels[0], labels[3] = CLASSES, CLASSES + 1  # one sample in train; one in val, unknown in train
    names = (*NAMES, "alone", "unseen")
    path = write_cache(tmp_path / "c.h5", features, [class_target(labels, names=names)], split=SPLIT)
    found = audit(path, fix=tmp_path / "fix.csv")
    assert not {key(0), key(3)} & {item["sample"] for item in found.label_issues["items"]}
    note = next(note for note in found.notes if note.code == "labels-not-judged")
    assert note.details["classes"] == ["alone"]
    with open(tmp_path / "fix.csv", encoding="utf-8", newline="") as file:
        fixed = {row["sample"]: row["label"] for row in csv.DictReader(file)}
    assert (len(fixed), fixed[key(0)], fixed[key(3)]) == (N, "alone", "unseen")
    repair = audit(path, repair=tmp_path / "fix.csv").repair
    assert repair["changed"] == found.label_issues["flag"]
    lines = [("sample", "label"), (key(1), "unseen"), (key(2), NAMES[2])]
    (tmp_path / "other.csv").write_text("".join(f"{','.join(line)}\n" for line in lines), "utf-8")
    repair = audit(path, repair=tmp_path / "other.csv").repair
    (note,) = [note for note in repair["notes"] if note["code"] == "classes-without-training-samples"]
    assert (repair["changed"], note["classes"]) == (0, ["unseen"])
    (tmp_path / "other.csv").write_text(f"sample,label\n{key(1)},nowhere\n", "utf-8")
    with pytest.raises(FitError, match="classes that the cache lacks: nowhere"):
        audit(path, repair=tmp_path / "other.csv")


def test_proposed_commands_judge_the_same_target_and_read_names_that_are_numbers(cache, tmp_path):
    with FeatureCache(cache) as opened:
        x, labels = opened.features("bottleneck").read(0, N), opened.samples.targets["label"].values
    names, path = ("0.5", "1.25", "2.75"), tmp_path / "두 표.h5"
    write_cache(path, x, [class_target(labels % 2, "a"), class_target(labels, "내 표", names)], split=SPLIT)

    def call(words):
        return CliRunner().invoke(group, [*words, "--json"] if "--repair" in words else words)

    lines = call(["audit", str(path), "--target", "내 표", "--doubt", "0.1"]).stdout
    (line,) = re.findall("^Next: bottleneck (.*)", lines, re.MULTILINE)
    fixed = tmp_path / "고침.csv"
    lines = call([str(fixed) if word == "labels.csv" else word for word in shlex.split(line)]).stdout
    (line,) = re.findall("^Next: bottleneck (.*)", lines, re.MULTILINE)
    found = json.loads(call(shlex.split(line)).stdout)
    assert found["target"] == "내 표"
    assert found["repair"]["changed"] == found["label_issues"]["flag"] > 0


def test_multilabel_targets_are_judged_label_by_label(features, truth, tmp_path):
    bits = np.eye(CLASSES, dtype=np.uint8)[truth]
    for copy, image in COPIES.items():
        bits[copy] = bits[image]
    bits[60, truth[60]] = 0
    target = Target("marks", "multilabel", bits, ("a", "b", "c"))
    found = audit(write_cache(tmp_path / "m.h5", features, [target], split=SPLIT))
    wrong = {(item["sample"], item["given"]) for item in flagged(found.label_issues)}
    assert wrong == {(key(60), f"not {'abc'[truth[60]]}")}
    assert "--fix" not in CliRunner().invoke(group, ["audit", str(tmp_path / "m.h5")]).stdout
    lines = [
        {"sample": key(i), "marks": ["abc"[k] for k in np.flatnonzero(bits[i, 1:]) + 1]} for i in range(N)
    ]
    labels = tmp_path / "without_a.jsonl"  # nothing is a any more, which the file can only say by its absence
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    repair = audit(tmp_path / "m.h5", repair=labels).repair
    assert repair["changed"] == bits[:, 0].sum()


def test_a_label_that_one_sample_has_is_not_judged(features, truth, tmp_path):
    bits = np.zeros((N, CLASSES + 1), np.uint8)
    bits[np.arange(N), truth] = 1
    bits[0, CLASSES] = 1
    target = Target("marks", "multilabel", bits, ("a", "b", "c", "rare"))
    found = audit(write_cache(tmp_path / "m.h5", features, [target], split=SPLIT))
    (note,) = [note for note in found.notes if note.code == "labels-not-judged"]
    assert note.details == {"classes": ["rare"]}
    rare = [item for item in found.label_issues["items"] if item["label"] == "rare"]
    assert len(rare) == N
    assert not any(item["flag"] or item["wrong"] for item in rare)


def test_a_repair_without_a_test_split_says_how_to_set_one_aside(features, truth, tmp_path):
    split = np.where(SPLIT == "test", "train", SPLIT)
    path = write_cache(tmp_path / "no test.h5", features, [class_target(truth, names=NAMES)], split=split)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"sample,label\n{key(0)},{NAMES[0]}\n", "utf-8")
    with pytest.raises(FitError) as error:
        audit(path, repair=labels)
    assert f"-o '{path}' --test-fraction 0.2" in error.value.hint
    shown = CliRunner().invoke(group, ["audit", str(path), "--fix", str(tmp_path / "fix.csv")]).output
    assert "--test-fraction 0.2" in shown.replace("\n", " ")


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (lambda t: [class_target(np.zeros(N, int))], {}, FitError, "one class"),
        (lambda t: [Target("w", "regression", np.arange(N) / 2)], {}, FitError, "'w' is a number"),
        (lambda t: [class_target(t)], {"target": "colour"}, FitError, "colour"),
        (lambda t: [class_target(t)], {"node": "conv1"}, CacheError, "conv1"),
        (lambda t: [class_target(t)], {"cosine": 0.0}, BottleneckError, "cosine is 0.0"),
        (lambda t: [class_target(t)], {"odd": {"pale": 0.1}}, BottleneckError, "no odd image of kind 'pale'"),
    ],
)
def test_what_cannot_be_audited_is_named(features, truth, tmp_path, make, options, error, text):
    path = write_cache(tmp_path / "c.h5", features, make(truth), split=SPLIT)
    with pytest.raises(error, match=text):
        audit(path, **options)


@pytest.mark.parametrize(
    ("options", "text"), [({"repair": "absent.csv"}, "absent.csv"), ({"fix": "."}, "is a folder")]
)
def test_a_file_that_cannot_be_used_is_refused_before_any_head_is_fitted(cache, monkeypatch, options, text):
    monkeypatch.setattr(judged, "fit_on", lambda *_, **__: pytest.fail("a head was fitted"))
    with pytest.raises(BottleneckError, match=text):
        audit(cache, **options)


def test_studies_of_a_cache_import_no_large_library():
    """They take seconds and 200 MB, and a cache needs none."""
    studies = ("audit", "drift", "suggest", "similar", "rank")
    modules = ", ".join(f"bottleneck.studies.{name}.{name}" for name in studies)
    large = ("torch", "timm", "torchvision", "onnxruntime", "sklearn", "scipy.stats", "pandas")
    code = f"import sys, {modules}; print([name for name in {large} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_of_many_samples_a_part_chooses_C_and_the_note_says_so(cache, result, monkeypatch):
    monkeypatch.setattr(judged, "FEW", 100)
    monkeypatch.setattr(judged, "SAMPLE", 60)
    monkeypatch.setattr(judged, "MANY", replace(judged.MANY, components=32))
    found = audit(cache)
    (note,) = [note for note in found.notes if note.code == "judged-approximately"]
    train = int((SPLIT == "train").sum())
    assert note.details == {"samples": train, "C_samples": 60}
    assert "32 principal components of 64 features" in note.message
    assert {key(i) for i in FLIPPED} <= {item["sample"] for item in found.label_issues["items"][:12]}
    a, b = (
        {item["sample"]: item["score"] for item in each.label_issues["items"]} for each in (found, result)
    )
    assert np.corrcoef([a[key(i)] for i in range(N)], [b[key(i)] for i in range(N)])[0, 1] > 0.9


def test_a_cache_without_labels_is_searched_for_copies_and_outliers(features, tmp_path, result):
    found = audit(write_cache(tmp_path / "c.h5", features, [], split=SPLIT))
    assert found.duplicates == result.duplicates
    assert found.outliers == result.outliers
    assert [item["images"] for item in found.leaks["items"]] == [result.leaks["items"][0]["images"]]
    assert [note.code for note in found.notes] == ["no-labels", "images-not-measured"]


def test_an_audit_without_labels_says_that_it_saw_a_part_of_the_images(features, tmp_path, monkeypatch):
    note = Note("extraction-unfinished", "The extraction was interrupted.", True)
    monkeypatch.setattr(SampleTable, "part_notes", lambda self: [note])
    found = audit(write_cache(tmp_path / "c.h5", features, [], split=SPLIT))
    assert note in found.notes
    with pytest.raises(FitError, match="no labels to fix"):
        audit(tmp_path / "c.h5", fix=tmp_path / "fix.csv")


def test_a_fix_of_labels_that_are_right_proposes_no_repair(tmp_path):
    y = np.arange(60) % 3
    X = (np.random.default_rng(0).normal(size=(60, 10)) + 9 * np.eye(10)[y]).astype(np.float32)
    path = write_cache(
        tmp_path / "c.h5", X, [class_target(y)], split=np.where(np.arange(60) % 5, "train", "test")
    )
    shown = CliRunner().invoke(group, ["audit", str(path), "--fix", str(tmp_path / "fix.csv")]).output
    assert "none is probably wrong" in shown.replace("\n", " ")
    assert "--repair" not in shown


def test_the_command_prints_tables_and_json(cache, tmp_path):
    shown = CliRunner().invoke(group, ["audit", str(cache), "--fix", str(tmp_path / "fix.csv")])
    assert shown.exit_code == 0, shown.output
    assert "labels that are probably wrong" in shown.output
    assert "in two splits" in shown.output
    printed = CliRunner().invoke(group, ["audit", str(cache), "--json"])
    found = json.loads(printed.stdout)
    keys = {"label_issues", "duplicates", "leaks", "outliers", "confusable", "thin", "odd", "failures"}
    assert keys <= found.keys()
    assert all("flag" in found[name] and "score" in found[name] for name in keys - {"failures"})


def test_of_several_nodes_the_first_is_compared_and_it_is_told():
    cache = SimpleNamespace(vectors=lambda node: [SimpleNamespace(name=name) for name in node.split("+")])
    assert node_notes(cache, "bottleneck") == []
    (note,) = node_notes(cache, "blocks.4@avg2+bottleneck")
    assert note.details == {"node": "blocks.4@avg2", "nodes": ["blocks.4@avg2", "bottleneck"]}
