"""predict keeps what it was given: names, columns, all probabilities; a head knows its columns."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from bottleneck import FeatureCache, evaluate, extract, fit_heads, load_model, predict
from bottleneck.data.read_source import read_source
from bottleneck.engines.base import SUPPORTED
from bottleneck.errors import ArtifactError, SourceError, StrictError
from bottleneck.models.attribution import Explainer
from bottleneck.models.export import export
from tests.helpers.stripes import write_stripes
from tests.models.conftest import COLUMNS, write_rows


def probabilities_of(listed):
    """softmax or sigmoid of coef · x + intercept on the cached features, in numpy alone, by target."""
    with FeatureCache(listed.cache) as cache:
        x = cache.sample_rows("bottleneck").read(0, len(cache.samples)).astype(np.float64)
        names, targets = cache.samples.key, cache.samples.targets
    found = {}
    for target, path in listed.heads.items():
        arrays = load_file(path)
        z = (x @ arrays["coef"].T.astype(np.float64) + arrays["intercept"]) / load_model(
            path
        ).head.temperature
        if target == "species":
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        else:
            p = 1 / (1 + np.exp(-z)) if target == "tags" else z
        found[target] = (targets[target].class_names, dict(zip(names, p, strict=True)))
    return found


def codes(result):
    return [note.code for note in result["notes"]]


@pytest.mark.parametrize("target", ["species", "tags"])
def test_names_columns_and_all_probabilities_are_kept(listed, target):
    result = predict(listed.heads[target], listed.manifest, probabilities=True, engine="torch")
    classes, expected = probabilities_of(listed)[target]
    assert [record["sample"] for record in result["predictions"]] == [row["name"] for row in listed.rows]
    for record, row in zip(result["predictions"], listed.rows, strict=True):
        given = {name: str(cell) for name, cell in row.items() if name != "Photo"}
        assert record["columns"] == given
        assert list(record["probabilities"]) == list(classes)
        np.testing.assert_allclose(list(record["probabilities"].values()), expected[row["name"]], atol=1e-5)
    assert "remembered-columns" in codes(result)


def test_a_quantity_has_no_probabilities(listed):
    values = predict(listed.heads["weight"], listed.manifest, engine="torch")["predictions"]
    _, expected = probabilities_of(listed)["weight"]
    for record in values:
        assert record["label"] == pytest.approx(expected[record["sample"]][0], abs=1e-3)
    with pytest.raises(ArtifactError, match=r"'weight', a quantity, .* Leave --probabilities out"):
        predict(listed.heads["weight"], listed.manifest, probabilities=True)
    with pytest.raises(ArtifactError, match="Leave --probabilities out"):
        load_model(listed.heads["weight"]).predict(listed.manifest, probabilities=True)


def test_a_table_holds_them_under_names_of_their_own(listed, tmp_path):
    rows = [{**row, "label": "mine", "p_red": 7} for row in listed.rows]
    manifest = write_rows(tmp_path / "l.csv", rows)
    output = tmp_path / "out.csv"
    result = predict(listed.heads["species"], manifest, probabilities=True, output=output, engine="torch")
    with open(output, newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == [
        *("image", "sample", "label", "confidence", "p_blue", "p_green", "p_red"),
        *("name", "species", "tags", "weight", "fold", "age", "remark", "label_given", "p_red_given"),
    ]
    for line, record, row in zip(written, result["predictions"], listed.rows, strict=True):
        assert (line["sample"], line["label_given"], line["p_red_given"]) == (row["name"], "mine", "7")
        assert float(line["p_red"]) == record["probabilities"]["red"]
        assert line["remark"] == row["remark"]
    (note,) = (note for note in result["notes"] if note.code == "columns-renamed")
    assert note.details["columns"] == {"label": "label_given", "p_red": "p_red_given"}


def test_cells_of_any_type_reach_each_format(listed, tmp_path):
    odd = [None, 3, 1.5, True, "=1+1", ["a", 2], {"k": [None]}]
    rows = [{"photo": row["Photo"], "age": 1, "odd": odd[i % 7]} for i, row in enumerate(listed.rows[:14])]
    manifest = write_rows(tmp_path / "l.jsonl", rows)
    for suffix in ("jsonl", "csv", "parquet"):
        predict(listed.heads["species"], manifest, output=tmp_path / f"o.{suffix}", engine="torch")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["columns"]["odd"] for line in lines] == [row["odd"] for row in rows]
    with open(tmp_path / "o.csv", newline="", encoding="utf-8") as file:
        cells = [line["odd"] for line in csv.DictReader(file)]
    assert cells[:7] == ["", "3", "1.5", "true", "'=1+1", '["a", 2]', '{"k": [null]}']
    from pyarrow import parquet

    cells = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["odd"] for row in cells[:5]] == [None, "3", "1.5", "true", "=1+1"]


def test_every_row_has_its_prediction_whatever_its_labels_and_splits(listed, tmp_path):
    """Rows that name one image, equal rows, odd splits and labels: predictions need none of them."""
    image = listed.rows[0]["Photo"]
    cells = [("no. 1", "holdout", "1"), ("no. 1", "", "one"), ("", "0", ""), ("", "0", "")]
    rows = [{"name": n, "Photo": image, "age": 2, "split": s, "label": x} for n, s, x in cells]
    result = predict(listed.heads["species"], write_rows(tmp_path / "l.csv", rows), engine="torch")
    assert [record["sample"] for record in result["predictions"]] == ["no. 1", "no. 1", image, image]
    assert len({record["confidence"] for record in result["predictions"]}) == 1
    assert not {"no-label-column", "split-column-unused", "repeated-rows"} & set(codes(result))


def test_labels_with_the_separator_in_their_names(listed, tmp_path):
    """`a|b` is one label: several are then joined by another character, and that is told."""
    from dataclasses import replace

    classifier = load_model(listed.heads["tags"], engine="torch")
    K = len(classifier.head.class_names)
    arrays = {**classifier.head.arrays, "coef": 0 * classifier.head.coef, "intercept": np.ones(K, np.float32)}
    names = ("a|b", *(f"c{k}" for k in range(K - 1)))
    classifier.head = replace(classifier.head, arrays=arrays, class_names=names)
    result = predict(classifier, listed.manifest, output=tmp_path / "o.csv")
    with open(tmp_path / "o.csv", newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["label"].split(";") == list(names)
    assert "joined-by-other-separator" in codes(result)


def test_evaluate_by_remembered_columns(listed):
    plain = evaluate(listed.heads["species"], listed.manifest, engine="torch")
    named = evaluate(
        listed.heads["species"],
        listed.manifest,
        engine="torch",
        **COLUMNS | {"label_columns": ["species"], "label_separator": None},
    )
    assert plain["confusion"] == named["confusion"]
    assert (plain["split"], plain["n"], plain["trained_on"]) == ("test", 15, 0)
    (note,) = (note for note in plain["notes"] if note.code == "remembered-columns")
    assert note.details["columns"] == {
        "image": ["Photo"],
        "split": ["fold"],
        "sample": ["name"],
        "label": ["species"],
        "covariate": ["age"],
    }
    assert "remembered-columns" not in codes(named)
    tags = evaluate(listed.heads["tags"], listed.manifest, engine="torch")
    assert tags["classes"] == ["blue", "even", "green", "red"]


def test_the_list_of_mistakes_names_samples_that_are_not_called_as_their_images(listed, tmp_path):
    all_red = write_rows(
        tmp_path / "l.csv", [{"sample": row["name"], "species": "red"} for row in listed.rows]
    )
    found = evaluate(listed.heads["species"], listed.cache, labels=all_red, errors=tmp_path / "e.csv")
    with open(tmp_path / "e.csv", newline="", encoding="utf-8") as file:
        wrong = list(csv.DictReader(file))
    assert len(wrong) == found["n"] - np.trace(found["confusion"]) > 0
    image_of = {row["name"]: row["Photo"] for row in listed.rows}
    assert [image_of[row["sample"]].endswith(row["image"]) for row in wrong] == [True] * len(wrong)


def test_flags_override_what_is_remembered(listed, tmp_path):
    rows = [{**row, "truth": "red", "cut": "val" if i % 2 else "test"} for i, row in enumerate(listed.rows)]
    manifest = write_rows(tmp_path / "l.csv", rows)
    result = evaluate(
        listed.heads["species"], manifest, label_columns=["truth"], split_column="cut", engine="torch"
    )
    assert (result["split"], result["n"]) == ("test", (len(rows) + 1) // 2)
    assert [row["n"] for row in result["per_class"]] == [0, 0, (len(rows) + 1) // 2]
    assert "target-by-other-name" in codes(result)


def test_missing_remembered_columns(listed, tmp_path):
    def manifest(*left_out):
        kept = [{k: v for k, v in row.items() if k not in left_out} for row in listed.rows]
        return write_rows(tmp_path / "l.csv", kept)

    head = listed.heads["species"]
    assert len(predict(head, manifest("species", "fold", "tags", "weight"), engine="torch")["predictions"])
    result = predict(head, manifest("name"), engine="torch")
    assert [record["sample"] for record in result["predictions"]] == [row["Photo"] for row in listed.rows]
    assert "has no column 'name', the sample column" in " ".join(map(str, result["notes"]))
    with pytest.raises(SourceError, match=r"has covariate 'age', and l\.csv has no column 'age'"):
        predict(head, manifest("age"))
    with pytest.raises(SourceError, match="--image-column"):
        predict(head, manifest("Photo"))
    with pytest.raises(ArtifactError, match="predicts target 'species'"):
        evaluate(head, manifest("species"))
    result = evaluate(head, manifest("fold"), engine="torch")
    assert (result["split"], result["n"]) == ("train", len(listed.rows))
    assert {"remembered-column-missing", "trained-on"} <= set(codes(result))


def test_the_default_image_column_stands_in(listed, tmp_path):
    rows = [{"image": row["Photo"], "age": 1} for row in listed.rows[:3]]
    result = predict(listed.heads["species"], write_rows(tmp_path / "l.csv", rows), engine="torch")
    assert len(result["predictions"]) == 3
    assert codes(result).count("remembered-column-missing") == 2  # the images', and the samples' names


def test_strict_refuses_decisions_on_the_source(listed, tmp_path):
    (tmp_path / "a").mkdir()
    rows = [{k: v for k, v in row.items() if k != "age"} for row in listed.rows]
    manifest = write_rows(tmp_path / "l.csv", [{**row, "age": 1, "photo": "x"} for row in rows])
    noted = predict(listed.heads["species"], manifest, engine="torch")
    assert "column-passed-over" in codes(noted)
    with pytest.raises(StrictError, match=r"Column 'photo' of l\.csv is not used"):
        predict(listed.heads["species"], manifest, strict=True)


def test_cache_info_shows_the_columns_that_it_was_made_from(listed):
    from click.testing import CliRunner

    from bottleneck.cli.cache import command

    shown = json.loads(CliRunner().invoke(command, ["info", str(listed.cache), "--json"]).stdout)
    assert shown["data"]["columns"] == {
        "image": ["Photo"],
        "label": ["species", "tags", "weight"],
        "split": ["fold"],
        "sample": ["name"],
        "covariate": ["age"],
        "separator": ["|"],
    }


def test_an_open_classifier_begins_a_new_run(made_cache, tmp_path):
    """Times, engines and notes are of that run, not of those before."""
    Image.new("RGBA", (60, 50), (200, 30, 40, 0)).save(tmp_path / "seen through.png")
    head = fit_heads(made_cache, output=tmp_path / "heads", C=0.1, cv=3).heads[0]["path"]
    classifier = load_model(head, engine="torch")
    classifier.trunk.startup_seconds = 1000.0
    first = predict(classifier, tmp_path / "seen through.png")
    assert 0 < first["seconds"] < 1000
    assert first["images_per_second"] > 0
    told = [note for note in first["notes"] if "seen through.png" in note.message]
    assert told
    cached = evaluate(classifier, made_cache)
    assert cached["engines"] == []
    assert not {note.code for note in told} & set(codes(cached))
    assert predict(classifier, tmp_path / "seen through.png")["engines"] == first["engines"]


def test_image_files_keep_the_names_that_they_were_given_by(made_cache, images, tmp_path, monkeypatch):
    """Relative ones too: they are one source, whatever the head remembers."""
    head = fit_heads(made_cache, output=tmp_path, C=0.1).heads[0]["path"]
    monkeypatch.chdir(images / "test")
    names = ["red/0.png", "./blue/1.png", "red/0.png"]
    result = predict(head, *names, engine="torch")
    assert [record["image"] for record in result["predictions"]] == names
    assert [record["sample"] for record in result["predictions"]] == names


def learnt_in(precision, folder):
    """Stripes, their cache in float32, computed in `precision`, and the path of a head on it."""
    source = write_stripes(folder / "images", images=8)
    engine = {"engine": "torch"} if precision == "bf16" else {}
    options = {"backbone": "small_cnn", "depth": 1, "image_size": 16, "precision": precision, **engine}
    nodes = ("bottleneck", "features.block1")  # of one int8 graph, of which the head takes one
    cache = extract(source, folder / "c.h5", force=True, dtype="float32", nodes=nodes, **options).cache
    return source, cache, fit_heads(cache, output=folder / "heads", nodes=nodes[:1]).heads[0]["path"]


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """The folder of the user with the graph of int8, and `learnt_in` of it."""
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(folder / "user"))
        return folder / "user", learnt_in("int8", folder)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_features_are_computed_as_those_that_the_head_learnt_from(precision, int8, tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    if precision == "int8":
        shutil.copytree(int8[0], tmp_path / "user")
    source, cache, head = int8[1] if precision == "int8" else learnt_in(precision, tmp_path)
    model = load_model(head, force=True)
    with FeatureCache(cache) as opened:
        cached = dict(zip(opened.images.key, opened.to_numpy()[0], strict=True))
        recorded = {"precision": precision, "calibration": opened.node("bottleneck").calibration}
        nodes = opened.nodes if precision == "int8" else ["bottleneck"]
        assert model.head.computed == dict.fromkeys(nodes, recorded)
    opened = read_source(source)
    rows, features, _ = model.inputs(opened)
    keys = [opened.images[opened.samples.image[row, 0]] for row in rows]
    np.testing.assert_allclose(features, [cached[key] for key in keys], rtol=1e-5, atol=1e-5)
    found = predict(head, source, force=True)
    assert "node-in-other-precision" not in codes(found)

    assert predict(head, source, precision="fast", force=True)["predictions"] == found["predictions"]

    # What was asked for is computed, and where that engine cannot be had, float32: it is told.
    plain = predict(head, source, engine="onnxruntime", precision="fp32")
    (note,) = [note for note in plain["notes"] if note.code == "node-in-other-precision"]
    assert note.message.endswith("computed in fp32: --precision fp32 was given.")
    if precision == "int8":
        shutil.rmtree(tmp_path / "user" / "graphs")
    else:
        monkeypatch.setitem(SUPPORTED["cpu"], "torch", ("fp32",))
    told = predict(head, source)
    (note,) = [note for note in told["notes"] if note.code == "node-in-other-precision"]
    assert note.details == {"nodes": ["bottleneck"], "precision": "fp32", "learnt_from": precision}
    assert f"If {precision} cannot be had again, extract the training images" in note.message
    first, second = ([each["confidence"] for each in one["predictions"]] for one in (plain, told))
    assert first == pytest.approx(second, abs=1e-4)


def test_int8_for_a_head_that_learnt_in_float32_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    source = write_stripes(tmp_path / "images", images=8)
    cache = extract(source, tmp_path / "c.h5", backbone="small_cnn", depth=1, image_size=16).cache
    head = fit_heads(cache, output=tmp_path / "heads").heads[0]["path"]
    assert "node-in-other-precision" not in codes(predict(head, source, precision="fp32"))
    told = predict(head, source, precision="int8", force=True)
    (note,) = [note for note in told["notes"] if note.code == "node-in-other-precision"]
    assert note.details == {"nodes": ["bottleneck"], "precision": "int8", "learnt_from": "fp32"}
    assert note.message.endswith("calibrated on the first of these images, on which the features depend.")


def test_what_computes_in_float32_alone_says_so_of_a_head_that_learnt_in_int8(int8, tmp_path):
    head = int8[1][-1]
    exported = export(head, format="onnx", output=tmp_path / "m.onnx")
    explained = Explainer(load_model(head))
    for subject, notes in (("exported file", exported.notes), ("explanation", explained.notes)):
        (note,) = [note for note in notes if note.code == "node-in-other-precision"]
        assert note.message.startswith(f"The {subject} computes the features of bottleneck in fp32")
        assert note.details == {"nodes": ["bottleneck"], "precision": "fp32", "learnt_from": "int8"}
