"""From nothing: several images and covariates, one logit for two classes, a model like any other."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.backbones.model_file import read_network
from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.errors import FitError, StrictError
from bottleneck.heads.artifact import load_head
from bottleneck.models.evaluate import evaluate
from bottleneck.training.scratch import default_model, scratch
from tests.helpers.fitted_cache import write_images
from tests.helpers.stripes import write_stripes

QUICK = {"epochs": 3, "batch_size": 8, "device": "cpu", "image_size": 48}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A manifest: two images and an age per sample, two classes."""
    folder = write_images(
        tmp_path_factory.mktemp("pairs"), {"train": 24, "val": 12, "test": 12}, ("blue", "red")
    )
    rows = []
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for name in ("blue", "red"):
            for i in range(count):
                images = [f"{split}/{name}/{2 * i + k}.png" for k in (0, 1)]
                rows.append([*images, name, split, 30 + i + 5 * (name == "red")])
    path = folder / "samples.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["front", "back", "colour", "part", "age"])
        writer.writerows(rows)
    columns = {
        "image_columns": ("front", "back"),
        "label_columns": ("colour",),
        "split_column": "part",
        "covariate_columns": ("age",),
    }
    return path, columns


def test_two_images_and_a_number_per_sample(pairs, tmp_path):
    path, columns = pairs
    model = tmp_path / "m.safetensors"
    result = scratch(path, model, **QUICK, **columns)
    head = load_head(model)
    assert result.kept == "scratch"
    assert result.n == {"train": 24, "val": 12, "test": 12}
    assert (head.images_per_sample, head.covariate_names, head.form) == (2, ("age",), "mlp")
    assert head.arrays["coef"].shape == (128, 2 * 64 + 1)
    np.testing.assert_array_equal(head.arrays["coef2"][0], -head.arrays["coef2"][1])
    assert result.classifier[::4] == ("Linear(129, 128)", "Linear(128, 1)")
    convolutions = sum(9 * a * b + b + 2 * b for a, b in ((3, 8), (8, 16), (16, 32), (32, 64)))
    assert result.parameters == convolutions + 129 * 128 + 128 + 256 + 129
    stored = read_network(model)
    assert sum(v.numel() for n, v in stored.items() if n.endswith(("weight", "bias"))) == convolutions
    assert not [name for name in stored if name.startswith("classifier")]
    found = evaluate(model, path, split="test", engine="torch", **columns)
    assert found["accuracy"] == pytest.approx(result.finetuned_accuracy["test"])
    assert found["log_loss"] == pytest.approx(result.metrics["test"]["log_loss"], rel=1e-3)


def test_two_classes_have_one_logit_and_batchnorm_learns(pairs, tmp_path):
    path, columns = pairs
    seen = []
    original = nn.BatchNorm2d.forward

    def forward(self, x):
        seen.append(self.training)
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", forward)
        scratch(path, tmp_path / "m.safetensors", **{**QUICK, "epochs": 1}, **columns)
    assert any(seen), "BatchNorm ran in training mode"
    assert not all(seen), "and in evaluation mode on val"


def test_any_backbone_gets_a_linear_layer(images, tmp_path):
    result = scratch(images, tmp_path / "m.safetensors", backbone="resnet18", epochs=1, image_size=32)
    head = load_head(tmp_path / "m.safetensors")
    assert head.form == "linear"
    assert head.coef.shape == (3, 512)
    assert result.classifier == ("Linear(512, 3)",)
    assert not [name for name in read_network(tmp_path / "m.safetensors") if name.startswith("fc.")]
    assert result.classes == ("blue", "green", "red")


def test_an_unreadable_image_is_listed_and_its_sample_left_out(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 8, "val": 4})
    (folder / "train" / "red" / "3.png").write_bytes(b"not an image")
    result = scratch(folder, tmp_path / "m.safetensors", **{**QUICK, "epochs": 1})
    assert result.n == {"train": 23, "val": 12}
    assert list(result.failures) == ["train/red/3.png"]
    (note,) = [note for note in result.notes if note.code == "images-unread"]
    assert note.changes_result
    assert "train/red/3.png" in note.message
    with pytest.raises(StrictError, match="1 image could not be read"):
        scratch(folder, tmp_path / "n.safetensors", strict=True, **{**QUICK, "epochs": 1})


def test_the_same_seed_gives_the_same_network(images, tmp_path):
    models = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for model in models:
        torch.manual_seed(hash(model.name) % 100)
        scratch(images, model, seed=3, **{**QUICK, "epochs": 1})
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_few_images_are_learnt_from_though_an_epoch_is_one_step(tmp_path):
    folder = write_stripes(tmp_path / "images", classes=2, images=16, val=8)
    result = scratch(folder, tmp_path / "m.safetensors", depth=2, image_size=24, device="cpu")
    assert result.finetuned_accuracy["val"] >= 0.9
    assert len(result.epochs) > 21 or result.stopped == "early"


def test_a_source_without_labels_is_refused(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 3}, ("red",))
    with pytest.raises(FitError, match="0 targets"):
        scratch(folder / "train" / "red", tmp_path / "m.safetensors", **QUICK)


def test_a_batch_size_of_one_is_refused_before_an_image_is_decoded(images, tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.training.scratch.decoded", None)
    with pytest.raises(FitError, match="batch_size is 1, but BatchNorm in training mode"):
        scratch(images, tmp_path / "m.safetensors", batch_size=1, depth=2, image_size=24)


def test_a_single_sample_that_is_left_over_is_learnt_from_too_unless_this_is_refused(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", {"train": 3, "val": 2})
    options = {"depth": 2, "image_size": 24, "epochs": 1, "batch_size": 2, "device": "cpu"}
    result = scratch(folder, tmp_path / "m.safetensors", **options)
    assert result.epochs[1].samples == 9
    assert {"last-batch-joined", "val-chose-the-epoch"} <= {note.code for note in result.notes}
    assert result.data["splits"] == {"train": 9, "val": 6, "test": 0}
    assert result.data["classes"]["label"]["red"] == {"train": 3, "val": 2, "test": 0}
    monkeypatch.setattr("bottleneck.training.scratch.decoded", None)
    with pytest.raises(StrictError, match="Some batches have 3 samples instead of 2"):
        scratch(folder, tmp_path / "n.safetensors", strict=True, **options)


def test_two_manifests_of_a_folder_have_models_of_their_own(pairs):
    """The default name was that of the folder: the second run replaced the first one's model."""
    path, columns = pairs
    other = path.with_name("others.v2.csv")
    other.write_bytes(path.read_bytes())
    names = [default_model(read_source(each, ReadConfig(**columns)), "colour").name for each in (path, other)]
    assert names == [f"{each.name}--colour--scratch.safetensors" for each in (path, other)]
