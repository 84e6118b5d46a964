"""evaluate of models whose network was trained: on cached maps, and on images where there are none."""

import shutil
from dataclasses import replace

import pytest
from safetensors.numpy import load_file

from bottleneck.errors import ArtifactError, BottleneckError, CacheError, StrictError
from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import load_head
from bottleneck.models.evaluate import evaluate
from bottleneck.names import STATE_PREFIX
from bottleneck.store.reader import FeatureCache
from bottleneck.training.finetune import finetune
from bottleneck.training.scratch import scratch
from tests.models.conftest import COLUMNS, write_rows


@pytest.fixture(scope="module")
def trained(made_cache, made_head, tmp_path_factory):
    """A model whose last block was trained, and what training said of it."""
    path = tmp_path_factory.mktemp("trained") / "m.safetensors"
    options = {"lr": 0.05, "epochs": 6, "batch_size": 8, "label_smoothing": 0.2, "device": "cpu"}
    result = finetune(made_cache, made_head, path, **options)
    assert result.kept == "finetuned", "the problem is made so that training helps"
    return path, result


@pytest.fixture
def without_map(made_cache, tmp_path):
    """The cache alone: its map and the images lie elsewhere."""
    shutil.copy(made_cache, tmp_path / "c.h5")
    return tmp_path / "c.h5"


def test_on_its_map_without_images(trained, made_cache, monkeypatch):
    model, result = trained
    monkeypatch.setattr("bottleneck.models.classifier.Classifier.outputs", None)  # what reads images
    found = evaluate(model, made_cache)
    assert found["split"] == "test"
    assert found["accuracy"] == result.finetuned_accuracy["test"]
    assert (found["engines"], found["precisions"]) == ([], {load_head(model).node: "fp32"})
    assert found["log_loss"] == pytest.approx(result.metrics["test"]["log_loss"], rel=1e-4)
    assert "used to choose" in str(evaluate(model, made_cache, split="val")["notes"][0])


def test_without_a_map_on_the_images_that_the_cache_names(trained, without_map):
    model, result = trained
    found = evaluate(model, without_map, engine="torch")
    assert found["n"] == result.n["test"]
    assert found["log_loss"] == pytest.approx(result.metrics["test"]["log_loss"], rel=1e-2)


def test_a_cache_of_another_network_lends_its_images(trained, images, tmp_path):
    model, result = trained
    extract(images, tmp_path / "o.h5", backbone="small_cnn", depth=2, engine="torch")
    found = evaluate(model, tmp_path / "o.h5", engine="torch")
    assert found["log_loss"] == pytest.approx(result.metrics["test"]["log_loss"], rel=1e-2)


def test_images_that_are_gone_are_named(trained, without_map, images):
    gone = images / "test" / "blue" / "2.png"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(CacheError, match=r"1 of 15 images .* is gone: test/blue/2\.png"):
            evaluate(trained[0], without_map)
    finally:
        gone.write_bytes(kept)


@pytest.fixture(scope="module")
def fitted_head(made_cache, tmp_path_factory):
    """A head as `fit-head` writes it, with the statistics of the random network."""
    return fit_heads(made_cache, output=tmp_path_factory.mktemp("fitted"), C=0.1).heads[0]["path"]


def resaved(path, other, **changes):
    """Write a head with other fields, and return the path."""
    network = {name: array for name, array in load_file(path).items() if name.startswith(STATE_PREFIX)}
    network = {name.removeprefix(STATE_PREFIX): array for name, array in network.items()}
    return replace(load_head(path), **changes).save(other, network)


def codes(result):
    return [note.code for note in result["notes"]]


def test_new_images_are_no_train_split_in_any_form(images, made_cache, fitted_head, tmp_path):
    """A folder, a cache or a list of images that the head was not fitted on says nothing of train."""
    extract(images / "test", tmp_path / "new.h5", backbone="small_cnn", engine="torch", dtype="float32")
    lines = [f"{path},{path.parent.name}" for path in (images / "test").rglob("*.png")]
    (tmp_path / "new.csv").write_text("\n".join(["image,label", *lines]))
    for source in (images / "test", tmp_path / "new.csv"):
        result = evaluate(fitted_head, source, engine="torch")
        assert (result["split"], result["n"], result["trained_on"]) == ("all", 15, 0)
        assert not {"trained-on", "measured-on-train"} & set(codes(result))
    with FeatureCache(made_cache) as own, FeatureCache(tmp_path / "new.h5") as new:
        assert own.spec != new.spec  # random weights have statistics of their own images
    assert "train" not in str(evaluate(fitted_head, images, split="test", engine="torch")["notes"])


def test_images_of_the_training_are_told_in_any_form(images, made_cache, fitted_head, tmp_path):
    """Counted by hand: 14 training images of each of three classes, copied under other names."""
    mixed = tmp_path / "mixed"
    for split, name, number in (("train", "a", 3), ("test", "b", 2)):
        for colour in ("blue", "green", "red"):
            (mixed / colour).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                shutil.copy(images / split / colour / f"{i}.png", mixed / colour / f"{name}{i}.png")
    lines = [f"{path},{path.parent.name}" for path in mixed.rglob("*.png")]
    (tmp_path / "mixed.csv").write_text("\n".join(["image,label", *lines]))
    for source, expected in (
        (mixed, (9, 15)),
        (tmp_path / "mixed.csv", (9, 15)),
        (images / "train", (42, 42)),
    ):
        result = evaluate(fitted_head, source, engine="torch")
        (note,) = (note for note in result["notes"] if note.code == "trained-on")
        assert (note.details["images"], note.details["of"]) == expected
        assert result["trained_on"] == expected[0]
        with pytest.raises(StrictError, match="figures"):
            evaluate(fitted_head, source, engine="torch", strict=True)
    on_cache = evaluate(fitted_head, made_cache, split="train", strict=True)  # the user asked for it
    assert (on_cache["split"], on_cache["trained_on"]) == ("train", 42)
    assert "trained-on" in codes(on_cache)
    assert "trained-on" not in codes(evaluate(fitted_head, made_cache, split="val"))


def test_a_foreign_cache_of_the_same_network(listed, images, tmp_path):
    """Published weights give every cache one network: here the recipe of the first is taken over."""
    rows = [row for row in listed.rows if row["fold"] == "test"]
    new = write_rows(tmp_path / "new.csv", [{k: v for k, v in row.items() if k != "fold"} for row in rows])
    shutil.copy(listed.cache, tmp_path / "new.h5")
    for beside in listed.cache.parent.glob("c.*"):
        shutil.copy(beside, tmp_path / beside.name.replace("c.", "new.", 1))
    options = {key: value for key, value in COLUMNS.items() if key != "split_column"}
    extract(new, tmp_path / "new.h5", source_moved=True, engine="torch", **options)
    result = evaluate(listed.heads["species"], tmp_path / "new.h5")
    assert (result["split"], result["n"], result["trained_on"]) == ("all", 15, 0)
    own = evaluate(listed.heads["species"], listed.cache)
    assert (own["split"], own["confusion"]) == ("test", result["confusion"])


def test_a_head_that_does_not_list_its_images_says_so(images, made_cache, fitted_head, tmp_path):
    head = resaved(fitted_head, tmp_path / "old.safetensors", trained_on={})
    assert "training-images-unknown" in codes(evaluate(head, images / "train", engine="torch"))
    assert "measured-on-train" in codes(evaluate(head, made_cache, split="train"))


def test_a_trained_network_knows_its_images(trained, images, made_cache):
    assert evaluate(trained[0], images / "test", engine="torch")["trained_on"] == 0
    assert evaluate(trained[0], made_cache, split="train")["trained_on"] == 42


def test_a_network_from_scratch_knows_its_images(images, tmp_path):
    model = scratch(images, tmp_path / "m.safetensors", depth=1, epochs=1, image_size=16, device="cpu").model
    assert evaluate(model, images, split="train", engine="torch")["trained_on"] == 42
    assert evaluate(model, images / "test", engine="torch")["trained_on"] == 0


def test_options_that_a_cache_does_not_use_are_named(made_cache, fitted_head):
    options = {"limit": 3, "val_fraction": 0.5, "image_columns": ["photo"]}
    result = evaluate(fitted_head, made_cache, **options)
    (note,) = (note for note in result["notes"] if note.code == "options-unused")
    assert note.details["options"] == ["image_columns", "val_fraction", "limit"]
    assert result["n"] == 15
    with pytest.raises(StrictError, match="val_fraction"):
        evaluate(fitted_head, made_cache, strict=True, **options)
    assert "options-unused" not in codes(evaluate(fitted_head, made_cache))


def test_a_folder_of_the_heads_classes_is_measured_as_its_target(listed, images, tmp_path):
    """The head predicts 'species'; the classes of a folder are the target 'label'."""
    head = load_head(listed.heads["species"])
    arrays = {name: array[..., :-1] if name != "intercept" else array for name, array in head.arrays.items()}
    path = resaved(listed.heads["species"], tmp_path / "h.safetensors", covariate_names=(), arrays=arrays)
    result = evaluate(path, images, engine="torch")
    assert "target-by-other-name" in codes(result)
    assert result["n"] == 15
    with pytest.raises(StrictError, match="'label' of the source is measured as 'species'"):
        evaluate(path, images, strict=True)
    (tmp_path / "other" / "cats").mkdir(parents=True)
    shutil.copy(images / "test" / "red" / "0.png", tmp_path / "other" / "cats" / "0.png")
    with pytest.raises(ArtifactError, match="predicts target 'species'"):
        evaluate(path, tmp_path / "other")


def test_a_split_that_is_not_there_is_named_with_those_that_are(images, fitted_head):
    with pytest.raises(BottleneckError) as raised:
        evaluate(fitted_head, images / "test", split="val", engine="torch")
    assert raised.value.message == "No labelled sample is in the val split; the source has 15 train."


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["wasp", "wasp", "fly"], "The head knows none of the classes of the source: 'wasp' (2), 'fly' (1)"),
        (["3.5", "4", "0"], "The head predicts classes; target 'label' of the source has numbers: "),
        (["", "", ""], "None of the 3 samples has a label of target 'label'"),
    ],
)
def test_labels_that_the_head_cannot_be_measured_on_are_named_for_what_they_are(
    images, fitted_head, tmp_path, labels, message
):
    paths = sorted((images / "test" / "red").glob("*.png"))[:3]
    rows = [f"{path},{label}" for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "new.csv").write_text("\n".join(["image,label", *rows]))
    with pytest.raises(BottleneckError) as raised:
        evaluate(fitted_head, tmp_path / "new.csv", engine="torch")
    assert str(raised.value).startswith(message)
    assert "split" not in str(raised.value)
