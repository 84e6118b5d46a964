"""evaluate of models whose network was trained: on cached maps, and on images where there are none."""

import shutil

import pytest

from bottleneck.errors import CacheError
from bottleneck.extraction.extract import extract
from bottleneck.models.evaluate import evaluate
from bottleneck.training.finetune import finetune


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
        with pytest.raises(CacheError, match=r"1 of 15 images .* are gone: test/blue/2\.png"):
            evaluate(trained[0], without_map)
    finally:
        gone.write_bytes(kept)


def test_a_folder_without_splits_says_nothing_of_the_train_split(images, made_cache, trained):
    """It may be any folder: what the head was fitted on is the train split of another source."""
    foreign = evaluate(trained[0], images / "test")
    assert foreign["n"] == 15
    assert "measured-on-train" not in [note.code for note in foreign["notes"]]
    own = evaluate(trained[0], made_cache, split="train")
    assert "measured-on-train" in [note.code for note in own["notes"]]
