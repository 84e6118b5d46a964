"""`fit-head`, `evaluate` and `predict` as a user meets them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bottleneck import FeatureCache, extract, fit_heads, load_model
from tests.helpers.photographs import photograph, write_photographs


def test_fit_head_prints_its_heads(fitted, tmp_path, run):
    result = run("fit-head", fitted.cache, "-o", tmp_path / "heads", "--json")
    (head,) = result.json["heads"]
    assert {"path", "target", "node", "head", "C", "cv_accuracy", "accuracy", "n"} <= set(head)
    assert (head["target"], head["node"], head["n"]) == ("label", "bottleneck", 21)
    assert set(head["accuracy"]) == {"train", "val"}


def test_evaluate_gives_the_same_on_cache_and_images(fitted, run):
    on_cache = run("evaluate", fitted.head, fitted.cache, "--json").json
    on_images = run("evaluate", fitted.head, fitted.source, "--val-fraction", "0.3", "--json").json
    assert on_cache["split"] == on_images["split"] == "val"
    assert on_cache["confusion"] == on_images["confusion"]
    assert on_cache["log_loss"] == pytest.approx(on_images["log_loss"], rel=1e-2)
    low, high = on_cache["accuracy_ci95"]
    assert 0 <= low <= on_cache["accuracy"] <= high <= 1
    assert on_cache["classes"] == ["ants", "bees", "개미 🐜"]


def write_labels(cache, path, renamed):
    """The cache's labels as a file; `renamed` takes whether a sample is in val, and the name of its class."""
    with FeatureCache(cache) as opened:
        target = opened.samples.targets["label"]
        names = [target.class_names[code] for code in target.values]
        in_val = (opened.samples.split == "val").tolist()
        keys = opened.samples.key
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *zip(keys, map(renamed, in_val, names), strict=True)])
    return path


def test_samples_of_an_unknown_class_are_left_out_and_counted(fitted, tmp_path, run):
    labels = write_labels(
        fitted.cache, tmp_path / "l.csv", lambda val, name: "wasps" if name == "bees" else name
    )
    whole = run("evaluate", fitted.head, fitted.cache, "--json").json
    found = run("evaluate", fitted.head, fitted.cache, "--labels", labels, "--json").json
    assert whole["unknown_classes"] == {}
    assert found["unknown_classes"] == {"wasps": 3}
    assert found["n"] == whole["n"] - 3
    assert found["confusion"][0] == whole["confusion"][0]
    assert found["confusion"][1] == [0, 0, 0]
    shown = run("evaluate", fitted.head, fitted.cache, "--labels", labels)
    assert "does not know were left out with their samples: 'wasps' (3)" in shown.out


def test_a_folder_of_an_unknown_class_is_left_out(fitted, tmp_path, run):
    source = shutil.copytree(fitted.source, tmp_path / "photos")
    (source / "bees").rename(source / "wasps")
    found = run("evaluate", fitted.head, source, "--json").json
    assert found["unknown_classes"] == {"wasps": 10}
    assert found["n"] == 20


def test_a_split_of_unknown_classes_alone_is_refused(fitted, tmp_path, run):
    labels = write_labels(fitted.cache, tmp_path / "l.csv", lambda val, name: f"new {name}" if val else name)
    result = run("evaluate", fitted.head, fitted.cache, "--labels", labels)
    assert result.code == 1
    assert "knows none of the classes of the val split: 'new ants' (3)" in " ".join(result.err.split())
    assert run("evaluate", fitted.head, fitted.cache, "--labels", labels, "--split", "train").code == 0


def test_an_unknown_label_among_several_costs_no_sample(fitted, tmp_path, run):
    with FeatureCache(fitted.cache) as cache:
        keys = sorted(cache.images.key)
    said = [["warm"], ["warm", "wet"], []]
    for name, more in (("fit", []), ("measured", ["windy"])):
        lines = [json.dumps({"image": key, "weather": said[i % 3] + more}) for i, key in enumerate(keys)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    head = fit_heads(fitted.cache, labels=tmp_path / "fit.jsonl", output=tmp_path / "heads").heads[0]["path"]
    before, after = (
        run("evaluate", head, fitted.cache, "--labels", tmp_path / f"{name}.jsonl", "--json").json
        for name in ("fit", "measured")
    )
    assert after["unknown_classes"] == {"windy": after["n"]}
    assert after["exact_match"] == before["exact_match"]
    assert after["n"] == before["n"]


def test_evaluate_lists_the_misclassified(fitted, tmp_path, run):
    result = run(
        "evaluate", fitted.head, fitted.cache, "--split", "train", "--errors", tmp_path / "e.csv", "--json"
    )
    with open(tmp_path / "e.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.json["n"] - np.trace(result.json["confusion"])
    assert result.json["notes"]


def test_evaluate_draws_names_of_any_script(fitted, tmp_path, run):
    picture = tmp_path / "confusion.png"
    assert run("evaluate", fitted.head, fitted.cache, "--confusion", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predict_writes_a_table(fitted, tmp_path, run, suffix):
    output = tmp_path / f"out.{suffix}"
    result = run("predict", fitted.head, fitted.source, "-o", output, "--json").json
    assert len(result["predictions"]) == 30
    if suffix == "csv":
        with open(output, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(output).to_pylist()
    assert [row["image"] for row in rows] == [row["image"] for row in result["predictions"]]
    assert "개미 🐜/003.jpg" in [row["image"] for row in rows]


def test_predictions_are_mostly_right_and_sum_to_one(fitted):
    predictions = load_model(fitted.head).predict(fitted.source, top=3)
    right = [row["label"] == row["image"].split("/")[0] for row in predictions]
    assert np.mean(right) > 0.8
    for row in predictions:
        assert sum(one["confidence"] for one in row["top"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == row["top"][0]["confidence"]


def test_a_bad_image_among_the_good_is_listed(fitted, tmp_path, run):
    photograph(0, 77).save(tmp_path / "a.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "b copy.jpg")
    (tmp_path / "c.jpg").write_text("no image")
    result = run("predict", fitted.head, tmp_path, "--json").json
    first, copy = result["predictions"]
    assert (first["image"], copy["image"]) == ("a.jpg", "b copy.jpg")
    assert first["top"] == copy["top"]
    assert [row["image"] for row in result["failed"]] == ["c.jpg"]


def test_files_named_one_by_one_keep_the_names_given(fitted, tmp_path, run):
    """Two files of one name in two folders can be told apart, and so can the images of two folders."""
    for folder in ("ants", "bees"):
        (tmp_path / folder).mkdir()
        shutil.copy(fitted.source / folder / "000.jpg", tmp_path / folder / "000.jpg")
    paths = [str(tmp_path / folder / "000.jpg") for folder in ("bees", "ants", "bees")]
    files = run("predict", fitted.head, *paths, "--json").json["predictions"]
    assert [row["image"] for row in files] == paths
    assert files[0]["top"] == files[2]["top"] != files[1]["top"]
    folders = run("predict", fitted.head, tmp_path / "ants", tmp_path / "bees", "--json").json
    assert [row["image"] for row in folders["predictions"]] == [paths[1], paths[0]]


def test_a_source_that_does_not_exist_is_told_before_any_work(fitted, run):
    result = run("predict", fitted.head, fitted.source, "gone.jpg")
    assert result.code == 1
    assert "gone.jpg does not exist" in result.err
    assert "Classifying" not in result.err


def test_nothing_readable_is_an_error(fitted, tmp_path, run):
    (tmp_path / "c.jpg").write_text("no image")
    result = run("predict", fitted.head, tmp_path / "c.jpg")
    assert result.code == 1
    assert "c.jpg" in result.err


@pytest.mark.parametrize(
    "command", ["predict {head} {source} -o {file}/out.csv", "fit-head {cache} -o {file}/heads"]
)
def test_an_output_that_cannot_be_written_is_one_line_with_its_place(fitted, tmp_path, run, command):
    file = tmp_path / "in the way"
    file.touch()
    places = {"head": fitted.head, "source": fitted.source, "cache": fitted.cache, "file": file}
    result = run(*(part.format(**places) for part in command.split()))
    (line,) = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert result.code == 1
    assert str(file) in line
    assert "unexpected" not in line
    assert "Classifying" not in result.err


@pytest.mark.parametrize(
    ("answer", "options", "measure"),
    [
        (lambda i: i / 7, {}, "r2"),
        (lambda i: i, {"regression": ["asked"]}, "r2"),
        (lambda i: [["warm"], ["warm", "wet"], []][i % 3], {}, "exact"),
    ],
)
def test_labels_of_a_file_of_any_kind_are_measured(fitted, tmp_path, run, answer, options, measure):
    with FeatureCache(fitted.cache) as cache:
        keys = sorted(cache.images.key)
    lines = [json.dumps({"image": key, "asked": answer(i)}) for i, key in enumerate(keys)]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(lines))
    head = fit_heads(fitted.cache, labels=labels, output=tmp_path / "heads", **options).heads[0]["path"]
    without = run("evaluate", head, fitted.cache)
    assert without.code == 1
    assert "--labels" in without.err
    shown = run("evaluate", head, fitted.cache, "--labels", labels)
    assert shown.code == 0
    assert measure in shown.out
    on_cache = run("evaluate", head, fitted.cache, "--labels", labels, "--json").json
    assert on_cache["split"] == "val"
    refused = run("evaluate", head, fitted.cache, "--labels", labels, "--confusion", tmp_path / "c.png")
    assert (refused.code, "of classes" in refused.err) == (1, True)


def test_images_that_are_not_measured_are_named(fitted, tmp_path, run):
    source = shutil.copytree(fitted.source, tmp_path / "photos")
    (source / "ants" / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (source / "bees" / "text.jpg").write_text("no image")
    result = run("evaluate", fitted.head, source, "--json").json
    assert {row["image"] for row in result["failed"]} == {"ants/nowhere.jpg", "bees/text.jpg"}
    shown = run("evaluate", fitted.head, source)
    assert "leads nowhere" in shown.out


def test_a_file_without_a_network_stands_for_the_one_that_it_names(fitted, tmp_path):
    """As does a model whose training kept the head."""
    other = extract(fitted.source, tmp_path / "other.h5", backbone=fitted.head, limit=3).cache
    with FeatureCache(other) as named, FeatureCache(fitted.cache) as first:
        assert named.fingerprint == first.fingerprint


def test_a_head_of_other_features_is_refused(fitted, tmp_path, run):
    other = tmp_path / "other.h5"
    extract(fitted.source, other, image_size=96, limit=6, engine="torch")
    result = run("evaluate", fitted.head, other, "--split", "train")
    assert result.code == 1
    assert "preprocess.size" in result.err


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "finetune", "audit"])
def test_every_command_says_the_same_of_a_damaged_head(fitted, tmp_path, run, command):
    head = tmp_path / "head.safetensors"
    head.write_bytes(Path(fitted.head).read_bytes()[:-1])
    size = head.stat().st_size
    arguments = {
        "evaluate": (head, fitted.cache),
        "predict": (head, fitted.source),
        "export": (head, "--format", "onnx", "-o", tmp_path / "head.onnx"),
        "finetune": (fitted.cache, "--head", head),
        "audit": (fitted.cache, "--head", head),
    }
    found = run(command, *arguments[command])
    assert found.code == 1
    assert found.err.strip().splitlines()[-1] == (
        f"Error: {head} is cut off: it has {size:,} of {size + 1:,} bytes; expected a head or model file. "
        "Copy it again from where it came, or make it again."
    )


def test_one_class_can_be_extracted_but_not_fitted(tmp_path, run):
    source = write_photographs(tmp_path / "photos", classes=("only",), each=3)
    extract(source, tmp_path / "x.h5")
    result = run("fit-head", tmp_path / "x.h5", "-o", tmp_path / "heads")
    assert result.code == 1
    assert "one class" in result.err or "1 class" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_samples_of_several_images_and_covariates(tmp_path, run):
    rows = []
    for number in range(24):
        kind = number % 2
        for side, name in enumerate(("front", "back")):
            photograph(kind, 10 * number + side).save(tmp_path / f"{name}{number}.jpg")
        rows.append([f"front{number}.jpg", f"back{number}.jpg", 20 + number, ("old", "new")[kind]])
    manifest = tmp_path / "pairs.csv"
    with open(manifest, "w", newline="") as file:
        csv.writer(file).writerows([["front", "back", "age", "label"], *rows])
    columns = ("--image-column", "front", "--image-column", "back", "--covariate", "age")
    cache = tmp_path / "pairs.h5"
    extracted = run("extract", manifest, "-o", cache, *columns, "--val-fraction", "0.25", "--json").json
    assert (extracted["images"], extracted["samples"]) == (48, 24)
    (head,) = fit_heads(cache, output=tmp_path / "heads").heads
    on_cache = run("evaluate", head["path"], cache, "--json").json
    assert on_cache["accuracy"] > 0.8
    predicted = run("predict", head["path"], manifest, *columns, "--json").json["predictions"]
    assert predicted[0]["images"] == ["front0.jpg", "back0.jpg"]
    refused = run("predict", head["path"], manifest, "--image-column", "front")
    assert refused.code == 1
    assert "2 images per sample" in refused.err


def test_a_manifest_with_gaps(tmp_path, run):
    """Absent files and missing labels are named; the rest is used."""
    write_photographs(tmp_path / "photos", classes=("a", "b"), each=6)
    lines = [f"photos/{name}/{number:03d}.jpg,{name}" for name in "ab" for number in range(6)]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["image,label", *lines, "photos/gone.jpg,a", "photos/a/000.jpg,"]))
    result = run("extract", manifest, "-o", tmp_path / "x.h5")
    assert result.code == 1  # the same image twice
    assert "photos/a/000.jpg" in result.err
    lines[0] = "photos/a/000.jpg,"
    manifest.write_text("\n".join(["image,label", *lines, "photos/gone.jpg,a"]))
    result = run("extract", manifest, "-o", tmp_path / "x.h5", "--json")
    assert result.json["failures"].keys() == {"photos/gone.jpg"}
    assert result.json["images"] == 12
    (head,) = fit_heads(tmp_path / "x.h5", output=tmp_path / "heads").heads
    assert head["n"] == 11
