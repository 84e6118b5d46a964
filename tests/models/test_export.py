"""Exported files: they run in their runtimes, at any batch size, and say what the model says."""

import io
import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from bottleneck.backbones.model_file import save_model
from bottleneck.backbones.registry import load_backbone
from bottleneck.errors import ArtifactError, EngineError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.export import METADATA, Deployed, export

SIZE, D = 32, 16 * 6 * 6


def head(backbone, hidden=0, images=1, covariates=(), classes=("ant", "bee", "벌"), **options):
    """A head with random weights on the small CNN of two blocks."""
    random = np.random.default_rng(0)
    width, K = images * D + len(covariates), len(classes)
    arrays = {
        "coef": random.normal(size=(hidden or K, width)) / np.sqrt(width),
        "intercept": random.normal(size=hidden or K),
        "mean": np.zeros(width),
        "scale": np.ones(width),
    }
    if hidden:
        arrays |= {"coef2": random.normal(size=(K, hidden)), "intercept2": random.normal(size=K)}
    described = {
        "kind": "mlp" if hidden else "logistic",
        "form": "mlp" if hidden else "linear",
        "arrays": {name: array.astype(np.float32) for name, array in arrays.items()},
        "class_names": classes,
        "images_per_sample": images,
        "covariate_names": covariates,
        "temperature": 1.7,
        "backbone": backbone.recipe,
        "preprocess": backbone.preprocess.override(SIZE, None).to_json(),
    }
    return HeadArtifact(**described | options)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("small_cnn", weights="none", depth=2, image_size=SIZE)


def saved(backbone, artifact, folder):
    """A model file of the backbone and the head."""
    return save_model(folder / "m.safetensors", artifact, backbone.module.state_dict(), "# card\n")


def expected(backbone, artifact, pixels, covariates=None):
    """What the head says of the network's features."""
    with torch.no_grad():
        images = torch.from_numpy(pixels.reshape(-1, SIZE, SIZE, 3))
        features = backbone.extractor(["bottleneck"])(images)[0].numpy().reshape(len(pixels), -1)
    return artifact.probabilities(
        features if covariates is None else np.concatenate([features, covariates], axis=1)
    )


def test_onnx_runs_from_pixels_with_classes_and_preprocessing_in_its_metadata(backbone, tmp_path):
    artifact = head(backbone)
    result = export(saved(backbone, artifact, tmp_path), format="onnx")
    assert result.path == str(tmp_path / "m.onnx")
    assert result.max_difference <= 1e-4
    session = onnxruntime.InferenceSession(result.path)
    pixels = np.random.default_rng(5).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    (found,) = session.run(["probabilities"], {"pixels": pixels})
    np.testing.assert_allclose(found, expected(backbone, artifact, pixels), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["ant", "bee", "벌"]
    assert json.loads(metadata["preprocess"]) == artifact.preprocess


def test_torch_export_of_several_images_and_covariates(backbone, tmp_path):
    artifact = head(backbone, hidden=8, images=2, covariates=("age", "weight"))
    result = export(saved(backbone, artifact, tmp_path), format="torch", output=tmp_path / "out.pt2")
    assert result.inputs == {"pixels": ["B", 2, SIZE, SIZE, 3], "covariates": ["B", 2]}
    extra = {METADATA: ""}
    program = torch.export.load(io.BytesIO((tmp_path / "out.pt2").read_bytes()), extra_files=extra).module()
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (4, 2, SIZE, SIZE, 3), dtype=np.uint8)
    covariates = random.normal(size=(4, 2)).astype(np.float32)
    found = program(torch.from_numpy(pixels), torch.from_numpy(covariates)).detach().numpy()
    np.testing.assert_allclose(found, expected(backbone, artifact, pixels, covariates), atol=1e-4)
    assert "벌" in json.loads(extra[METADATA])["classes"]


@pytest.mark.parametrize(
    ("link", "kind"), [("softmax", "class"), ("ovr", "class"), ("sigmoid", "multilabel")]
)
def test_links_at_the_heads_temperature(backbone, link, kind):
    artifact = head(backbone, link=link, target_kind=kind)
    pixels = np.random.default_rng(5).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        found = Deployed(backbone, artifact)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, expected(backbone, artifact, pixels), atol=1e-5)


def test_one_against_the_rest_has_probabilities_where_every_sigmoid_is_zero(backbone):
    artifact = head(backbone, link="ovr", target_kind="class")
    artifact = replace(artifact, arrays=artifact.arrays | {"intercept": artifact.intercept - np.float32(500)})
    pixels = np.random.default_rng(5).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        found = Deployed(backbone, artifact)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected(backbone, artifact, pixels), atol=1e-3)


def test_a_file_that_says_something_else_is_not_written(backbone, tmp_path, monkeypatch):
    original = Deployed.forward
    monkeypatch.setattr(Deployed, "forward", lambda self, pixels: original(self, pixels) + 1e-2)
    with pytest.raises(EngineError, match="differs from the model by 1"):
        export(saved(backbone, head(backbone), tmp_path), format="torch")
    assert not (tmp_path / "m.pt2").exists()


def test_neighbours_and_unknown_formats_are_refused(backbone, tmp_path):
    arrays = {"features": np.zeros((3, D)), "answers": np.eye(3), "mean": np.zeros(D), "scale": np.ones(D)}
    knn = replace(head(backbone), kind="knn", form="knn", arrays=arrays, settings={"k": 1})
    with pytest.raises(ArtifactError, match="nearest neighbours cannot be exported"):
        export(saved(backbone, knn, tmp_path), format="onnx")
    with pytest.raises(ArtifactError, match="expected onnx or torch"):
        export(tmp_path / "m.safetensors", format="tflite")


def regression(backbone, unit, offset=2.5, **options):
    """A head of quantities about `offset` units, which vary by about one unit."""
    fitted = head(backbone, classes=("",))
    arrays = {
        **fitted.arrays,
        "coef": np.float32(unit) * fitted.arrays["coef"],
        "intercept": np.array([offset * unit], np.float32),
    }
    described = {"kind": "ridge", "link": "identity", "class_names": (), "target_kind": "regression"}
    return replace(fitted, **described | {"arrays": arrays, "temperature": 1.0} | options)


METRICS = {"train": {"r2": 0.75, "rmse": 0.5, "mae": 0.4, "n": 9}}  # of values with a spread of 1


def in_unit(unit):
    return {"train": {**METRICS["train"], "rmse": 0.5 * unit}}


@pytest.mark.parametrize(
    ("unit", "format", "metrics"),
    [
        (1e-9, "onnx", False),
        (1e-9, "torch", True),
        (2e5, "onnx", True),
        (2e5, "torch", False),
        (1e12, "onnx", True),
        (1e12, "torch", False),
    ],
)
def test_quantities_of_any_unit_are_exported(backbone, tmp_path, unit, format, metrics):
    artifact = regression(backbone, unit, metrics=in_unit(unit) if metrics else {})
    result = export(saved(backbone, artifact, tmp_path), format=format)
    assert result.max_difference <= result.allowed <= 1e-3 * unit


@pytest.mark.parametrize("unit", [1e-9, 2e5])
def test_a_wrong_quantity_of_any_unit_is_not_written(backbone, tmp_path, monkeypatch, unit):
    def wrong(self, pixels, covariates=None):
        return original(self, pixels, covariates) + 0.01 * unit

    original = Deployed.forward
    monkeypatch.setattr(Deployed, "forward", wrong)
    artifact = regression(backbone, unit, metrics=in_unit(unit))
    with pytest.raises(EngineError, match="differs from the model by"):
        export(saved(backbone, artifact, tmp_path), format="torch", output=tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_a_quantity_far_from_zero_may_differ_by_the_steps_of_float32(backbone, tmp_path):
    artifact = regression(backbone, 1e-3, offset=5e8, metrics=in_unit(1e-3))  # 500,000 ± 0.001
    result = export(saved(backbone, artifact, tmp_path), format="torch")
    assert np.spacing(np.float32(5e5)) <= result.allowed < 10
