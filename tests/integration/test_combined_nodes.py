"""A head on several nodes side by side, from the cache to the exported file."""

import csv
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch

from bottleneck import FeatureCache, evaluate, extract, finetune, fit_heads, load_model
from bottleneck.errors import ArtifactError, CacheError
from bottleneck.heads.artifact import load_head
from bottleneck.models.export import export
from bottleneck.training.initial_head import starting_head
from bottleneck.training.labelled_splits import LabelledSplits
from tests.helpers.caches import class_target, write_cache
from tests.helpers.problems import features, judge, objective, standardised_coef
from tests.helpers.world import A, B, World, row_of

COMBINED = "features.block2+features.block3@avg2"


@pytest.fixture(scope="module")
def pairs(images, tmp_path_factory):
    """Samples of two images and a number: the manifest, its cache, and a combined head."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = [("left", "right", "label", "split", "weight")]
    for split in ("train", "val"):
        for name in ("blue", "green", "red"):
            files = sorted((images / split / name).glob("*.png"))
            lines += [
                (str(a), str(b), name, split, f"{number / 7:.3f}")
                for number, (a, b) in enumerate(pairwise(files))
            ]
    manifest = folder / "pairs.csv"
    with open(manifest, "w", newline="") as file:
        csv.writer(file).writerows(lines)
    columns = {"image_columns": ("left", "right"), "covariate_columns": ("weight",)}
    cache = folder / "pairs.h5"
    nodes = COMBINED.split("+")
    extract(manifest, cache, backbone="small_cnn", nodes=nodes, engine="torch", dtype="float32", **columns)
    (record,) = fit_heads(cache, nodes=[COMBINED], output=folder / "heads").heads
    return manifest, cache, record["path"], columns


def test_a_combined_head_says_the_same_of_cache_and_images(pairs):
    manifest, cache, path, columns = pairs
    head = load_head(path)
    assert head.node == COMBINED
    model = load_model(path, engine="torch")
    on_cache = evaluate(model, cache, split="val")
    on_images = evaluate(model, manifest, split="val", **columns)
    assert on_cache["confusion"] == on_images["confusion"]
    assert on_cache["log_loss"] == pytest.approx(on_images["log_loss"], rel=1e-3)


def test_the_inputs_are_the_nodes_of_each_image_and_last_the_covariates(pairs):
    _, cache, path, _ = pairs
    with FeatureCache(cache) as opened:
        rows, samples = opened.sample_rows(COMBINED).read(0, 5), opened.samples
        first, second = (opened.features(node) for node in COMBINED.split("+"))
        for row, (left, right), weight in zip(rows, samples.image[:5], samples.covariates[:5], strict=True):
            parts = [first.take([left]), second.take([left]), first.take([right]), second.take([right])]
            np.testing.assert_array_equal(
                row, np.concatenate([*(part[0] for part in parts), np.float32(weight)])
            )
    assert load_head(path).n_features == rows.shape[1]


def test_every_node_of_every_image_has_a_scale(pairs, tmp_path):
    _, cache, path, _ = pairs
    nodes = COMBINED.split("+")
    names = [f"{node} of image {number}" for number in (1, 2) for node in nodes]
    assert list(load_head(path).settings["scales"]) == [*names, "covariates"]
    result = fit_heads(cache, nodes=[COMBINED], C=1e-3, scales="equal", output=tmp_path)
    assert set(result.heads[0]["scales"].values()) == {1.0}
    (note,) = (note for note in result.notes if note.code == "input-scales")
    assert "covariates 1" in note.message


def test_training_begins_at_the_scales_of_the_head(pairs, tmp_path):
    """A head that is fitted again at its C, for a part of the samples, keeps the scales of its inputs."""
    _, cache, _, _ = pairs
    node = COMBINED.split("+")[1]
    (record,) = fit_heads(cache, nodes=[node], output=tmp_path).heads
    head = load_head(record["path"])
    with FeatureCache(cache) as opened:
        train = np.flatnonzero(opened.samples.split == "train")
        labels = opened.samples.targets["label"].values
        again = starting_head(head, opened, LabelledSplits(opened.samples, labels, {"train": train}, True))
    assert again.settings["scales"] == head.settings["scales"]
    np.testing.assert_allclose(again.scale, head.scale, rtol=1e-5)
    np.testing.assert_allclose(again.coef, head.coef, rtol=1e-2, atol=1e-3 * np.abs(head.coef).max())


def test_a_combined_head_is_exported(pairs, tmp_path):
    """The file says what the head says of the network's nodes, one by one, of drawn pixels."""
    *_, path, _ = pairs
    onnx = export(path, format="onnx", output=tmp_path / "m.onnx")
    program = export(path, format="torch", output=tmp_path / "m.pt2")
    head, model = load_head(path), load_model(path)
    size = head.preprocess["size"]
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, 2, size, size, 3), dtype=np.uint8)
    covariates = generator.random((4, 1), dtype=np.float32)
    backbone, preprocess = model.trunk.backbone, model.trunk.preprocess
    parts = []
    for node in COMBINED.split("+"):
        with torch.no_grad():
            rows = backbone.extractor([node], preprocess)(torch.from_numpy(pixels.reshape(-1, size, size, 3)))
        parts.append(rows[0].numpy().reshape(4, 2, -1))
    inputs = np.concatenate(parts, axis=2).reshape(4, -1)
    expected = head.probabilities(np.concatenate([inputs, covariates], axis=1))
    (found,) = onnxruntime.InferenceSession(onnx.path).run(None, {"pixels": pixels, "covariates": covariates})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    loaded = torch.export.load(program.path).module()
    found = loaded(torch.from_numpy(pixels), torch.from_numpy(covariates)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_finetuning_starts_from_one_node_and_says_so(pairs, tmp_path):
    _, cache, path, _ = pairs
    with pytest.raises(ArtifactError, match=r"block2, features\.block3@avg2 side") as refused:
        finetune(cache, path, output=tmp_path / "m.safetensors")
    assert "--node features.block3@avg2" in refused.value.hint


def test_equal_scales_are_a_regression_on_features_side_by_side(tmp_path):
    """scikit-learn on standardised features that numpy has put side by side."""
    X, y = features(150, 12, 3)
    more = np.random.default_rng(5).standard_normal((150, 7)).astype(np.float32)
    cache = write_cache(tmp_path / "x.h5", X, [class_target(y)], more={"blocks.0": more})
    (record,) = fit_heads(cache, nodes=["blocks.0+bottleneck"], C=0.05, scales="equal", output=tmp_path).heads
    rows = np.hstack([more, X])
    found = load_head(record["path"])
    Z, best = judge(rows, y, 0.05)
    coef, intercept = standardised_coef(found.coef, found.intercept, found.mean, found.scale)
    assert -1e-5 < objective(Z, y, coef, intercept, 0.05) / best - 1 < 1e-4


def test_rows_of_two_nodes_are_joined_by_image(tmp_path):
    """Node B was added after images came and went, so that its rows lie in another order than those of A."""
    world = World()
    for key in ("c", "a", "e"):
        world.put(key, key.encode())
    world.extract(tmp_path / "w.h5", [A])
    for key in ("b", "d"):
        world.put(key, key.encode())
    del world.files["c"]
    world.extract(tmp_path / "w.h5", [B, A])
    with FeatureCache(tmp_path / "w.h5") as cache:
        rows = cache.sample_rows("bottleneck+blocks.5").read(0, 4)
        for row, image in zip(rows, cache.samples.image[:, 0], strict=True):
            digest = cache.images.digest[image].tobytes()
            expected = np.concatenate([row_of(digest, B), row_of(digest, A)])
            np.testing.assert_array_equal(row[:-1], expected)
        with pytest.raises(CacheError, match=r"names node 'blocks\.5' twice"):
            cache.sample_rows("blocks.5+bottleneck+blocks.5")
        with pytest.raises(CacheError, match=r"no features of node 'blocks\.9'"):
            cache.sample_rows("blocks.5+blocks.9")
