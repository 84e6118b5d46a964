"""The page of a report: its numbers against those of other code, its budget, and input that lacks much."""

import base64
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

from bottleneck.cli.report import command
from bottleneck.errors import ArtifactError, BottleneckError, WriteError
from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import load_head
from bottleneck.progress import SILENT
from bottleneck.report.page import data_section, held_out, verdict_section
from bottleneck.report.page.model_section import Neighbours
from bottleneck.report.page.pictures import Pictures
from bottleneck.report.page.report import write_report
from bottleneck.samples import Target
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.embedding.map_file import export_map
from bottleneck.trials.task import task_of
from tests.helpers.caches import class_target, write_cache
from tests.helpers.fitted_cache import COUNTS, write_images


@pytest.fixture(scope="module")
def head(made_cache, tmp_path_factory):
    """The path of a head that makes mistakes."""
    return fit_heads(made_cache, output=tmp_path_factory.mktemp("heads"), C=1e-3).heads[0]["path"]


@pytest.fixture(scope="module")
def page(made_cache, head, tmp_path_factory):
    """The report of a head on its cache, with figures."""
    folder = tmp_path_factory.mktemp("page")
    paths = [head, made_cache]
    return write_report(paths, output=folder / "r.html", figures=folder / "figures", command="the command")


def blobs(path, kind="class", test=True, classes=3, n=60, names=None):
    """A cache of blobs with a target of `kind`, whose images do not exist."""
    random = np.random.default_rng(0)
    y = np.arange(n) % classes
    X = (random.normal(size=(n, 10)) + 3 * np.eye(10)[y]).astype(np.float32)
    target = class_target(y, names=names)
    if kind == "regression":
        target = Target("weight", "regression", X[:, 0].astype(float) + 5)
    if kind == "multilabel":
        target = Target("tags", "multilabel", (X[:, :3] > 1).astype(np.uint8), ("a", "b", "c"))
    split = np.array(["train"] * n, object)
    if test:
        split[::4] = "test"
    return write_cache(path, X, [target], split=split)


def fitted(cache, tmp_path, **options):
    """The path of a head on a cache."""
    options = {"head": "logistic"} | options
    return fit_heads(cache, output=tmp_path / "heads", C=0.1, **options).heads[0]["path"]


def codes(report):
    return [note.code for note in report.notes]


def test_accuracy_and_confusions_are_those_of_scikit_learn(page, made_cache, head):
    with FeatureCache(made_cache) as cache:
        rows = np.flatnonzero(cache.samples.split == "test")
        X = cache.features("bottleneck").take(cache.samples.image[rows, 0]).astype(np.float64)
        y = cache.samples.targets["label"].values[rows]
    head = load_head(head)
    predicted = (X @ head.coef.T.astype(np.float64) + head.intercept).argmax(axis=1)
    assert page.sections["model"]["confusion"]["counts"] == confusion_matrix(y, predicted).tolist()
    first = page.sections["verdict"]["figures"][0]
    assert first["value"] == pytest.approx(accuracy_score(y, predicted))
    assert first["low"] < first["value"] < first["high"]


def test_the_cells_of_the_matrix_name_their_images(page, opened, tmp_path):
    read = opened(tmp_path.__class__(page.path))
    counts = read.report["model"]["confusion"]["counts"]
    names = read.report["model"]["confusion"]["classes"]
    for cell, numbers in read.cells.items():
        true, predicted = map(int, cell.split(","))
        assert len(numbers) == counts[true][predicted]
        assert {read.images[k].split("/")[1] for k in numbers} == {names[true]}


def test_samples_are_counted_by_class_and_split(page):
    rows = page.sections["data"]["classes-label"]
    assert len(rows) == 3
    assert all(row[split]["value"] == count for row in rows for split, count in COUNTS.items())


def test_the_sections_stand_in_their_order(page, opened, tmp_path):
    order = ["verdict", "provenance", "data", "choice", "model", "map", "network"]
    assert list(page.sections) == order
    read = opened(tmp_path.__class__(page.path))
    assert [tag["id"] for name, tag in read.tags if name == "section" and tag["id"] != "notes"] == order


def test_provenance_names_command_fingerprint_and_sha256_of_the_weights(page, opened, made_cache, tmp_path):
    with FeatureCache(made_cache) as cache:
        wanted = [cache.fingerprint, cache.spec.backbone["weights_sha256"], "the command"]
    texts = " ".join(opened(tmp_path.__class__(page.path)).texts)
    assert [text for text in wanted if text not in texts] == []


def test_the_nearest_training_images_are_those_of_numpy(page, opened, made_cache, tmp_path):
    """Of each mistake the three of the greatest cosine."""
    with FeatureCache(made_cache) as cache:
        X = cache.features("bottleneck").take(np.arange(len(cache.images))).astype(np.float64)
        keys, train = cache.images.key.tolist(), cache.samples.image[cache.samples.split == "train", 0]
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    read = opened(tmp_path.__class__(page.path))
    cards = re.findall(r'<figure class="card.*?</figure>', read.html, re.DOTALL)
    assert cards
    for card in cards:
        shown = [read.images[int(k)] for k in re.findall(r'data-image="(\d+)"', card)]
        cosines = X[train] @ X[keys.index(shown[0])]
        best = [keys[train[i]] for i in np.argsort(-cosines)[:3]]
        assert [name for name in shown[1:] if not name.startswith("where it looked")] == best


def test_every_thumbnail_is_its_own_image(page, opened, images, tmp_path):
    """The mean colour of a place of the sprite is that of the file."""
    read = opened(tmp_path.__class__(page.path))
    data = base64.b64decode(re.search(r"data:image/webp;base64,([^)]+)\)", read.html)[1])
    path = tmp_path / "s.webp"
    path.write_bytes(data)
    sheet = np.asarray(Image.open(path).convert("RGB"), float)
    side, columns = read.sprite["side"], read.sprite["columns"]
    files = [name for name in read.images if not name.startswith("where it looked")]
    assert len(files) == sum(COUNTS.values()) * 3
    assert len(read.sprite["place"]) == len(read.images)
    for number, at in ((k, at) for k, at in read.sprite["place"].items() if read.images[int(k)] in files):
        top, left = divmod(at, columns)
        tile = sheet[top * side : (top + 1) * side, left * side : (left + 1) * side]
        file = np.asarray(Image.open(images / read.images[int(number)]).convert("RGB"), float)
        assert np.abs(tile.mean(axis=(0, 1)) - file.mean(axis=(0, 1))).max() < 12


def test_mistakes_show_where_the_model_looked(page, opened, tmp_path):
    read = opened(tmp_path.__class__(page.path))
    mistakes = np.array(read.report["model"]["confusion"]["counts"])
    wrong = int(mistakes.sum() - np.trace(mistakes))
    looked = [name for name in read.images if name.startswith("where it looked")]
    assert len(looked) == min(9, wrong) > 0
    gallery = read.html.split('id="mistakes-gallery"')[1].split('id="block-')[0]
    shown = [read.images[int(k)] for k in re.findall(r'data-image="(\d+)"', gallery)]
    assert [name for name in shown if name.startswith("where it looked")] == looked
    assert all(f"where it looked: {name}" in looked for name in shown[:1])


def test_nothing_may_be_requested_and_only_our_script_runs(page, opened, tmp_path):
    read = opened(tmp_path.__class__(page.path))
    (policy,) = [tag["content"] for _, tag in read.tags if tag.get("http-equiv")]
    script = re.search(r"<script>(.*?)</script>", read.html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    addresses = [tag.get(name) for _, tag in read.tags for name in ("src", "href") if tag.get(name)]
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert [tag for _, tag in read.tags if any(name.startswith("on") for name in tag)] == []


def test_figures_are_written_as_png_and_svg(page):
    names = {os.path.basename(path) for path in page.figures}
    assert {
        f"{name}.{suffix}" for name in ("map", "confusion", "reliability") for suffix in ("png", "svg")
    } <= names
    for path in page.figures:
        with open(path, "rb") as file:
            assert file.read(5) == (b"\x89PNG\r" if path.endswith("png") else b"<?xml")


def test_thumbnails_give_way_to_the_budget(made_cache, made_head, tmp_path):
    result = write_report([made_head, made_cache], output=tmp_path / "r.html", max_size=200_000)
    assert os.path.getsize(tmp_path / "r.html") == result.bytes <= 200_000
    assert 0 < result.thumbnails < result.images
    assert "thumbnails-left-out" in codes(result)


def test_images_that_are_gone_are_told_and_named(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 4, "test": 2})
    cache = extract(folder, tmp_path / "c.h5", backbone="small_cnn", engine="torch").cache
    shutil.rmtree(folder)
    result = write_report([cache], output=tmp_path / "r.html")
    assert result.thumbnails == 0
    assert "images-unreadable" in codes(result)
    assert "no picture" in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.strangers
def test_images_of_a_strangers_cache_are_not_read(made_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    result = write_report([made_cache], output="r.html")
    assert result.thumbnails == 0
    assert "images-not-shown" in codes(result)


def test_a_head_of_another_cache_is_shown_by_the_figures_of_its_file(tmp_path):
    one = blobs(tmp_path / "a.h5")
    (tmp_path / "x").mkdir()
    with FeatureCache(one) as cache:
        X = cache.features("bottleneck").take(np.arange(60))
    foreign = write_cache(tmp_path / "x" / "c.h5", X, [class_target(np.arange(60) % 3)], dtype="float16")
    head = fitted(one, tmp_path)
    result = write_report([head, foreign], output=tmp_path / "r.html")
    assert "model-not-measured" in codes(result)
    accuracy = load_head(head).metrics["test"]["accuracy"]
    assert result.sections["verdict"]["figures"][0]["value"] == pytest.approx(accuracy)


def test_without_a_test_split_folds_are_measured(tmp_path):
    cache = blobs(tmp_path / "c.h5", test=False)
    head = fitted(cache, tmp_path)
    result = write_report([head, cache], output=tmp_path / "r.html")
    stored = load_head(head).metrics["cv"]
    assert result.sections["model"]["confusion"]["counts"] == stored["confusion"]
    assert "Measured on held-out folds of the training images" in (tmp_path / "r.html").read_text("utf-8")


def test_folds_that_are_fitted_again_are_those_of_the_fit(tmp_path):
    cache = blobs(tmp_path / "c.h5", test=False)
    head = fitted(cache, tmp_path)
    os.remove(head.replace(".safetensors", "--out-of-fold.npz"))
    result = write_report([head, cache], output=tmp_path / "r.html")
    assert result.sections["model"]["confusion"]["counts"] == load_head(head).metrics["cv"]["confusion"]


def test_labels_that_are_missing_leave_data_and_map(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (20, 20), (25 * number, 80, 120)).save(folder / f"{number}.png")
    cache = extract(folder, tmp_path / "c.h5", backbone="small_cnn", engine="torch").cache
    result = write_report([cache], output=tmp_path / "r.html")
    assert "no labels" in result.sections["data"]["no-labels"]
    assert len(result.sections["map"]["map"]["class"]) == 9
    assert result.sections["model"] == {}


def test_one_class_is_told(tmp_path):
    cache = blobs(tmp_path / "c.h5", classes=1, n=12)
    result = write_report([cache], output=tmp_path / "r.html")
    assert "one class" in result.sections["verdict"]["one-class"]
    with FeatureCache(cache) as opened:
        assert f"bottleneck extract {opened.source} -o {cache}" in result.sections["verdict"]["next"]


def test_classes_without_a_sample_in_what_is_measured_are_a_problem():
    (problem,) = verdict_section._unmeasured(["ant", "bee"], [[3, 1], [0, 0]], "the test split")
    assert problem.headline == "1 of 2 classes is not measured"
    assert problem.detail.startswith("The test split has no sample of bee.")
    assert verdict_section._unmeasured(["ant", "bee"], [[3, 1], [0, 1]], "the test split") == []


@pytest.mark.parametrize(
    ("kind", "figure"), [("regression", "R²"), ("multilabel", "of all label answers are right")]
)
def test_other_targets_have_their_own_figures(kind, figure, tmp_path):
    cache = blobs(tmp_path / "c.h5", kind)
    head = fitted(cache, tmp_path, head="ridge" if kind == "regression" else "logistic")
    result = write_report([head, cache], output=tmp_path / "r.html", figures=tmp_path / "f")
    assert result.sections["verdict"]["figures"][0]["label"] == figure
    assert "model-not-measured" not in codes(result)
    assert "confusion" not in result.sections["model"]


def test_the_same_file_in_two_splits_is_a_pair_and_a_problem(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 5, "test": 3})
    shutil.copy(folder / "train" / "red" / "0.png", folder / "test" / "red" / "copy.png")
    cache = extract(folder, tmp_path / "c.h5", backbone="small_cnn", engine="torch").cache
    result = write_report([cache], output=tmp_path / "r.html")
    assert "look-alikes" in result.sections["data"]
    assert result.sections["verdict"]["problems"][0]["headline"] == "1 pair of images is in two splits"


def test_pairs_of_an_audit_have_the_splits_of_the_cache(tmp_path):
    """Those of the audit may be of another cache of the same images, or older."""
    with FeatureCache(blobs(tmp_path / "c.h5")) as cache:
        test, first, second = (str(cache.images.key[row]) for row in (0, 1, 2))
        told = {"splits": ["test", "val"], "cosine": 0.99, "exact": False}
        items = [{"images": [first, one], **told} for one in (test, second)]
        (pair,) = data_section.look_alikes(cache, [{"leaks": {"items": items}}])
    assert pair == {"images": [first, test], "splits": ["test", "train"], "cosine": 0.99, "exact": False}


def test_a_page_that_cannot_be_written_is_refused_before_work(made_cache, tmp_path):
    with pytest.raises(WriteError):
        write_report([made_cache], output=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        write_report([made_cache], output=tmp_path / "file" / "r.html")


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}'])
def test_what_is_no_result_is_refused(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises((ArtifactError, BottleneckError), match=r"x\.json"):
        write_report([path], output=tmp_path / "r.html")


AUDIT = {"cache": "c.h5", "label_issues": {}, "duplicates": {}}


@pytest.mark.parametrize(
    "value",
    [
        AUDIT | {"leaks": []},
        AUDIT | {"leaks": {"items": [1]}},
        AUDIT | {"leaks": {"items": [{"images": [[1]], "splits": [], "cosine": 1.0}]}},
        AUDIT | {"leaks": {"items": [{"images": ["a", "b"], "splits": [], "cosine": None}]}},
        {"candidates": 5, "chosen": {}, "rule": ""},
        {"candidates": ["x"], "chosen": {}, "rule": ""},
        {"runs": [], "rows": [3], "chosen": None},
        {"runs": [], "rows": [{"accuracy": 1}], "chosen": None},
        {"runs": [], "rows": [], "chosen": "x"},
        {"epochs": 3, "best_epoch": 1, "kept": "head"},
        {"cache": "c.h5", "computed": 1, "data": {"ignored": [1]}},
    ],
)
def test_a_result_of_another_form_is_refused_with_its_path(value, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=r"x\.json, a result of .*not of its type"):
        write_report([path], output=tmp_path / "r.html")


def test_numbers_that_json_lacks_and_files_of_another_form_beside_a_head_are_left_out(tmp_path):
    head = fitted(blobs(tmp_path / "c.h5"), tmp_path)
    for end, value in ((".history.json", {"epochs": 3}), (".candidates.json", [1])):
        (tmp_path / "heads" / head).with_suffix(end).write_text(json.dumps(value))
    curves = {"BnB": [{"n": 1, "mean": 1e999}, {"n": 2, "mean": "x"}], "AnB": [1]}
    (tmp_path / "s.json").write_text(json.dumps({"curves": curves, "effects": 1, "layers": 1}))
    tried = {"candidates": [{"what": "a", "cv_accuracy": float("nan")}], "chosen": 1, "rule": 1}
    (tmp_path / "t.json").write_text(json.dumps(tried))
    result = write_report([head, tmp_path / "s.json", tmp_path / "t.json"], output=tmp_path / "r.html")
    assert result.sections["network"]["transfer-study"][0]["x"] == [1]
    damaged = [note.details["path"] for note in result.notes if note.code == "file-beside-damaged"]
    beside = tmp_path / "heads" / head
    assert damaged == [str(beside.with_suffix(end)) for end in (".history.json", ".candidates.json")]


@pytest.mark.parametrize("content", ["a" * 200_000, "target,node\n\0", "target,node,shots\nlabel,a,x\n"])
@pytest.mark.parametrize("name", ["c--shot-curve.csv", "study/runs.csv"])
def test_a_table_that_cannot_be_read_is_refused(name, content, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    (path.parent / "study.json").write_text("{}")
    given = path.parent if path.name == "runs.csv" else path
    with pytest.raises(ArtifactError, match=r"no table of|no readable runs\.csv"):
        write_report([given], output=tmp_path / "r.html")


def test_the_command_prints_where_and_how_large(made_cache, made_head, tmp_path):
    arguments = [str(made_head), str(made_cache), "-o", str(tmp_path / "r.html"), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    values = json.loads(result.stdout)
    assert values["bytes"] == os.path.getsize(tmp_path / "r.html")
    assert values["sections"]["verdict"]


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """Cache with mirrored views of 24 images, the result of `extract`, and a head that averages both."""
    folder, random = tmp_path_factory.mktemp("flipped"), np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 120, (40, 60, 3), dtype=np.uint8)
        pixels[:20, :, number % 2] += 40
        path = folder / "images" / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    options = {"backbone": "small_cnn", "engine": "torch", "image_size": 48, "nodes": ["features.block2"]}
    extracted = extract(folder / "images", folder / "c.h5", flip=True, **options)
    (folder / "extract.json").write_text(json.dumps(extracted.to_json(), default=str))
    (fitted,) = fit_heads(folder / "c.h5", output=folder / "heads", cv=3).heads
    head = load_head(fitted["path"])
    head = replace(head, settings={**head.settings, "flip": True})
    return folder, head.save(folder / "flipping.safetensors")


def test_the_network_and_what_made_the_cache_are_shown(flipped, tmp_path):
    """Patches of blocks, pixel sizes, engine and seed; a flipped model is judged by mirrored folds."""
    folder, head = flipped
    result = write_report(
        [folder / "c.h5", head, folder / "extract.json"], output=tmp_path / "r.html", seed=3
    )
    assert any(name.startswith("patches-") for name in result.sections["network"]), result.notes
    files = {row["what"]: row["value"] for row in result.sections["data"]["files"]}
    assert files["pixels of an image"] == "60 × 40"
    made = {row["what"]: row["value"] for row in result.sections["provenance"]["cache"]}
    assert (made["engine"], made["precision"]) == ("torch", "fp32")
    assert made["node features.block2"].endswith("computed in fp32 by engine torch")
    model = {row["what"]: row["value"] for row in result.sections["provenance"]["model-file"]}
    assert model["seed of the folds"] == 0
    here = {row["what"]: row["value"] for row in result.sections["provenance"]["page"]}
    assert here["seed of the map"] == 3
    assert result.overlays > 0 or "mistakes" not in result.sections["model"]
    assert "held-out folds" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_flipped_model_of_samples_without_folds_is_not_judged_by_folds(flipped):
    """As where all of train is of one group, and val was learnt from."""
    folder, head = flipped
    with FeatureCache(folder / "c.h5") as cache:
        task = task_of(cache, None, cv=3, seed=0)
        alone = replace(task, fold=np.full_like(task.fold, -1))
        assert held_out._of_mirrored_folds(task, load_head(head), SILENT) is not None
        assert held_out._of_mirrored_folds(alone, load_head(head), SILENT) is None


def test_a_folder_is_read_where_its_cache_has_two_dashes_in_its_name(flipped, tmp_path):
    """Maps and statistics belong to the cache, and the k-shot curve to its heads."""
    nodes = ["bottleneck", "features.block2@none"]
    options = {"backbone": "small_cnn", "engine": "torch", "image_size": 48, "nodes": nodes}
    extract(flipped[0] / "images", tmp_path / "pets--small.h5", **options)
    fit_heads(tmp_path / "pets--small.h5", output=tmp_path, cv=3, shots=[1])
    assert len(list(tmp_path.glob("pets--small--*"))) >= 4  # map, statistics, head, curve
    result = write_report([tmp_path], output=tmp_path / "r.html")
    assert [name for name in result.sections["provenance"] if name.startswith("cache")] == ["cache"]
    assert "shots" in result.sections["choice"]
    # As a shell writes the names: the map, the curve and the statistics are before the cache.
    named = sorted(path for path in tmp_path.iterdir() if path.suffix in (".h5", ".csv", ".safetensors"))
    assert named[-1].name == "pets--small.h5"
    again = write_report(named, output=tmp_path / "r.html")
    assert list(again.sections["provenance"]) == list(result.sections["provenance"])
    assert again.sections["choice"]["shots"] == result.sections["choice"]["shots"]


@pytest.mark.parametrize("name", ["c.hdf5", "c.H5"])
def test_a_folder_is_read_whatever_the_suffix_of_its_cache(name, tmp_path):
    blobs(tmp_path / name)
    result = write_report([tmp_path], output=tmp_path / "r.html")
    assert "cache" in result.sections["provenance"]


def test_commands_to_extract_again_name_the_columns_and_the_cache(images, tmp_path):
    photos = sorted((images / "test" / "blue").iterdir())
    rows = "".join(f"{photo},one\n" for photo in photos)
    (tmp_path / "list.csv").write_text(f"photo,kind\n{rows}")
    cache = tmp_path / "my cache.h5"
    columns = {"image_columns": ["photo"], "label_columns": ["kind"]}
    extract(tmp_path / "list.csv", cache, backbone="small_cnn", engine="torch", **columns)
    result = write_report([cache], output=tmp_path / "r.html")
    command = (
        f"bottleneck extract {tmp_path / 'list.csv'} --image-column photo --label-column kind -o '{cache}'"
    )
    assert result.sections["verdict"]["next"] == command
    main = SimpleNamespace(head=SimpleNamespace(settings={}, class_names=()))
    with FeatureCache(cache) as opened:
        (problem,) = verdict_section._of_measurement(main, None, "the train split", {}, opened)
    assert problem.command == f"{command} --test-fraction 0.2"


def test_neighbours_have_the_labels_of_the_head_s_target(tmp_path):
    """The cache has another target before it."""
    random, y = np.random.default_rng(0), np.arange(12) % 3
    targets = [
        replace(class_target(y, names=["red", "green", "blue"]), name="colour"),
        class_target(y, names=["a", "b", "c"]),
    ]
    path = write_cache(tmp_path / "c.h5", random.normal(size=(12, 4)).astype(np.float32), targets)
    for target, names in (("label", {"a", "b", "c"}), ("colour", {"red", "green", "blue"}), ("gone", {""})):
        found = SimpleNamespace(head=SimpleNamespace(node="bottleneck", target=target))
        with FeatureCache(path) as cache:
            near = Neighbours(cache, found, Pictures()).of(np.arange(12))
        assert {label for each in near for _, label in each} == names


def test_blocks_of_one_name_are_told_apart(tmp_path, opened):
    cache = blobs(tmp_path / "c.h5")
    paths = []
    for folder in ("a", "b"):
        head = fitted(cache, tmp_path / folder)
        tried = [{"what": folder, "cv_accuracy": 0.5, "chosen": True}]
        (tmp_path / head).with_suffix(".candidates.json").write_text(json.dumps(tried))
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "x.png")
        paths += [head, tmp_path / folder / "x.png"]
    result = write_report(paths, output=tmp_path / "r.html")
    assert {"picture-x", "picture-x-2"} <= set(result.sections["network"])
    assert [result.sections["choice"][name][0]["tried"] for name in ("tried", "tried-2")] == ["a", "b"]
    ids = [tag["id"] for _, tag in opened(tmp_path / "r.html").tags if "id" in tag]
    assert len(ids) == len(set(ids))


def test_an_audit_that_is_given_is_not_asked_for(tmp_path):
    path = blobs(tmp_path / "c.h5")
    head = fitted(path, tmp_path)
    with FeatureCache(path) as cache:
        images = [str(key) for key in cache.images.key[:2]]
    leak = {"images": images, "splits": ["test", "train"], "cosine": 0.99, "exact": False}
    shown = []
    for audited in (str(path), "another.h5"):
        audit = {"cache": audited, "label_issues": {}, "duplicates": {}, "leaks": {"items": [leak]}}
        (tmp_path / "audit.json").write_text(json.dumps(audit))
        result = write_report([path, head, tmp_path / "audit.json"], output=tmp_path / "r.html")
        problems = {each["headline"]: each for each in result.sections["verdict"]["problems"]}
        shown.append(problems["1 pair of images is in two splits"]["command"])
    assert shown[0] == ""
    assert "bottleneck audit" in shown[1]


def test_the_map_file_averages_mirror_images_where_the_head_does(flipped, tmp_path):
    folder, path = flipped
    parquet = pytest.importorskip("pyarrow.parquet")
    export_map(folder / "c.h5", output=tmp_path / "m.parquet", head=path)
    given = parquet.read_table(tmp_path / "m.parquet")["confidence"].to_pylist()
    head = load_head(path)
    with FeatureCache(folder / "c.h5") as cache:
        both = [
            cache.sample_rows(head.node, views=views).read(0, 24).reshape(24, -1) for views in (False, True)
        ]
    expected = np.mean([head.probabilities(rows) for rows in both], axis=0).max(axis=1)
    np.testing.assert_allclose(given, expected, atol=1e-6)
