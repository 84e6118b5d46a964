"""A choice that is kept on a grown folder: the mean of two images, and a tuned block."""

import json
import shutil

import numpy as np
import pytest

from bottleneck import train
from bottleneck.extraction.config import ExtractConfig
from bottleneck.heads.artifact import load_head
from bottleneck.progress import SILENT
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train.kept_choice import _changes, _moved
from bottleneck.studies.train.request import Request
from bottleneck.trials import finetuning, mirrors
from tests.helpers.stripes import write_stripes
from tests.studies.train.conftest import TINY


@pytest.fixture
def folder(tmp_path):
    """Four classes of ten images, all train; the first two of each have another's label."""
    write_stripes(tmp_path / "stripes", images=10, val=0)
    for number in (0, 1):
        paths = [tmp_path / "stripes" / "train" / f"class{k}" / f"{number}.png" for k in range(4)]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
            path.write_bytes(content)
    write_stripes(tmp_path / "more", classes=5, images=8, val=0)
    return tmp_path / "stripes" / "train"


def grow(folder):
    """Add a class of eight images."""
    shutil.copytree(folder.parents[1] / "more" / "train" / "class4", folder / "class4")


def note_of(result):
    (note,) = [note for note in result.notes if note.code == "choice-kept"]
    assert note.details == {"changed": 8, "of": 40, "new": 8, "gone": 0, "relabelled": 0}
    assert note.changes_result
    return note


def test_an_image_with_another_label_is_one_change():
    def digests(images, samples):
        return {"images": np.array(images, np.uint64), "samples": np.array(samples, np.uint64)}

    before = digests([1, 1, 2, 3, 4], [10, 10, 20, 30, 40])
    now = digests([1, 1, 2, 3, 5], [10, 11, 20, 31, 50])  # two relabelled, one gone, one new
    assert _changes(before, now) == {"new": 1, "gone": 1, "relabelled": 2}
    assert sum(_changes(before, before).values()) == 0


def test_a_sample_that_chose_must_not_be_in_test_but_a_copy_of_one_may():
    before, digests = np.array([1, 2, 3], np.uint64), lambda *of: np.array(of, np.uint64)
    assert _moved(before, digests(1, 2), digests(3, 9))
    assert not _moved(before, digests(1, 2, 3), digests(3, 9))
    assert not _moved(before, digests(1, 2), digests(9))
    assert not _moved(before, digests(1, 2), digests())


def test_another_recipe_of_the_features_is_another_choice(source):
    def asked(**given):
        extraction = ExtractConfig(**given)
        return Request(source, "m.safetensors", ("net",), TrainConfig(), extraction, None, False, SILENT)

    plain = asked().fingerprint
    for given in ({"image_size": 64}, {"crop": 1.0}, {"in_channels": 1}, {"depth": 2}, {"dtype": "float32"}):
        assert asked(**given).fingerprint != plain


def test_a_tuned_block_is_tuned_again_and_nothing_else_is_tried(folder, monkeypatch):
    trained = []

    def answered(tune, train, held):
        trained.append(len(held))
        codes = tune.task.target.values[held]
        return 9.0 * np.eye(len(tune.task.target.class_names), dtype=np.float32)[codes]

    monkeypatch.setattr(finetuning, "EPOCHS", 1)
    monkeypatch.setattr(finetuning.OpenTuning, "held_out_logits", answered)
    settings = {"finetune": "always", "cv": 2, **TINY}
    first = train(folder, folder.parent / "m.safetensors", **settings)
    assert (first.chosen["kind"], trained) == ("finetuned", [20, 20])
    trained.clear()
    grow(folder)
    found = train(folder, folder.parent / "m.safetensors", **settings)
    assert found.candidates[0]["kind"] == "finetuned"
    others = [each for each in first.candidates if not each["chosen"]]
    assert found.candidates[1:] == [{**each, "earlier": True} for each in others], "the table is kept"
    with open(found.files["table_json"], encoding="utf-8") as file:
        assert len(json.load(file)) == len(first.candidates)
    assert found.chosen["node"] == first.chosen["node"]
    assert trained == [24]  # one fold, which measures it
    assert found.images == {"computed": 8, "reused": 40, "failed": 0}
    assert load_head(found.model).n_train == 48
    assert load_head(found.model).class_names[-1] == "class4"
    assert "Its map is extracted for new images" in note_of(found).message
    assert ", of 4 classes, while those of the model are of 5." in note_of(found).message


def test_the_mean_of_two_images_is_measured_again(folder, monkeypatch):
    real = mirrors.mirrored_outputs

    def answered(task, head, rows):
        return 9.0 * np.eye(real(task, head, rows).shape[1])[task.target.values[rows]]

    monkeypatch.setattr(mirrors, "mirrored_outputs", answered)
    first = train(folder, folder.parent / "m.safetensors", flip=True, **TINY)
    grow(folder)
    found = train(folder, folder.parent / "m.safetensors", flip=True, **TINY)
    assert found.candidates[0]["kind"] == first.chosen["kind"] == "flipped"
    assert all(each["earlier"] for each in found.candidates[1:])
    assert found.images["computed"] == 8
    assert load_head(found.model).settings["flip"] is True
    assert "mean of each image and its mirror image" in note_of(found).message
