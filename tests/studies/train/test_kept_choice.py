"""A choice that is kept on a grown folder: the mean of two images, and a tuned block."""

import shutil

import numpy as np
import pytest

from bottleneck import train
from bottleneck.heads.artifact import load_head
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
    assert note.details == {"changed": 8, "of": 40}
    return note


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
    assert [each["kind"] for each in found.candidates] == ["finetuned"]
    assert found.chosen["node"] == first.chosen["node"]
    assert trained == [24]  # one fold, which measures it
    assert found.images == {"computed": 8, "reused": 40, "failed": 0}
    assert load_head(found.model).n_train == 48
    assert load_head(found.model).class_names[-1] == "class4"
    assert "Its map is extracted for new images" in note_of(found).message


def test_the_mean_of_two_images_is_measured_again(folder, monkeypatch):
    real = mirrors.mirrored_outputs

    def answered(task, head, rows):
        return 9.0 * np.eye(real(task, head, rows).shape[1])[task.target.values[rows]]

    monkeypatch.setattr(mirrors, "mirrored_outputs", answered)
    first = train(folder, folder.parent / "m.safetensors", flip=True, **TINY)
    grow(folder)
    found = train(folder, folder.parent / "m.safetensors", flip=True, **TINY)
    assert [each["kind"] for each in found.candidates] == [first.chosen["kind"]] == ["flipped"]
    assert found.images["computed"] == 8
    assert load_head(found.model).settings["flip"] is True
    assert "mean of each image and its mirror image" in note_of(found).message
