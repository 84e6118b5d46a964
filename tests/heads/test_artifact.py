"""The head file: what is written is read, and what a stranger wrote is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from bottleneck.errors import ArtifactError
from bottleneck.heads.artifact import HeadArtifact, apply_link, load_head

D, C = 4, 3


def linear(**changed):
    generator = np.random.default_rng(0)
    arrays = {
        "coef": generator.standard_normal((C, D)),
        "intercept": generator.standard_normal(C),
        "mean": np.zeros(D),
        "scale": np.ones(D),
    }
    fields = {
        "kind": "logistic",
        "form": "linear",
        "arrays": {name: array.astype(np.float32) for name, array in arrays.items()},
        "class_names": ("개미", "벌", "🐈"),
        "target": "종",
        "temperature": 1.7,
        "C": 0.01,
        "metrics": {"val": {"accuracy": 0.9, "accuracy_ci95": (0.8, 0.95)}},
        "backbone": {"name": "x"},
    }
    return HeadArtifact(**fields | changed)


def mlp():
    generator = np.random.default_rng(0)
    shapes = {
        "coef": (5, D),
        "intercept": (5,),
        "coef2": (C, 5),
        "intercept2": (C,),
        "mean": (D,),
        "scale": (D,),
    }
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return linear(kind="mlp", form="mlp", arrays=arrays, C=None)


@pytest.mark.parametrize("make", [linear, mlp])
def test_what_is_written_is_read(make, tmp_path):
    head = make()
    path = head.save(tmp_path / "머리" / "h.safetensors")
    read = load_head(path)
    x = np.random.default_rng(1).standard_normal((7, D)).astype(np.float32)
    assert (read.decision(x) == head.decision(x)).all()
    assert read.class_names == head.class_names
    assert (read.target, read.temperature, read.C) == ("종", 1.7, head.C)
    assert read.metrics == {"val": {"accuracy": 0.9, "accuracy_ci95": [0.8, 0.95]}}
    assert list(tmp_path.joinpath("머리").iterdir()) == [path]


def test_probabilities_are_of_the_temperature():
    head = linear()
    x = np.ones((2, D), np.float32)
    assert np.allclose(head.probabilities(x), apply_link(head.decision(x) / 1.7, "softmax"))
    assert np.allclose(head.probabilities(x).sum(axis=1), 1)
    assert (head.predict(x) == head.decision(x).argmax(axis=1)).all()


def test_links():
    z = np.array([[1000.0, -1000.0], [0.0, 0.0]])
    assert np.allclose(apply_link(z, "softmax"), [[1, 0], [0.5, 0.5]])
    assert np.allclose(apply_link(z, "sigmoid"), [[1, 0], [0.5, 0.5]])
    assert np.allclose(apply_link(-abs(z), "ovr"), 0.5)
    assert np.allclose(apply_link(z[:, :1], "identity"), [1000, 0])


@pytest.mark.parametrize("shape", [(3, D + 1), (D,), (2, 2, D)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ArtifactError, match=r"takes \(n, 4\)"):
        linear().decision(np.zeros(shape))


@pytest.mark.parametrize(
    "changed",
    [
        {"form": "forest"},
        {"link": "sigmoid"},
        {"temperature": 0.0},
        {"temperature": np.nan},
        {"images_per_sample": 0},
        {"class_names": ("a", "b")},
    ],
)
def test_what_cannot_be_a_head_is_not_made(changed):
    with pytest.raises(ArtifactError):
        linear(**changed)


def written(tmp_path, arrays=None, description=None, **metadata):
    """A head file with something changed."""
    head = linear()
    described = json.loads(json.dumps(fields_of(head), default=list)) | (description or {})
    described = {name: value for name, value in described.items() if value != "gone"}
    meta = {"format": "bottleneck-head", "format_version": "1", "head": json.dumps(described)} | metadata
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(save(dict(head.arrays) | (arrays or {}), metadata=meta))
    return path


def fields_of(head):
    return {name: value for name, value in vars(head).items() if name != "arrays"}


def test_the_untouched_file_is_fine(tmp_path):
    assert load_head(written(tmp_path)).class_names[0] == "개미"


HOSTILE = {
    "nan": {"arrays": {"coef": np.full((C, D), np.nan, np.float32)}},
    "infinite": {"arrays": {"intercept": np.full(C, np.inf, np.float32)}},
    "width": {"arrays": {"coef": np.zeros((C, D + 1), np.float32)}},
    "axes": {"arrays": {"coef": np.zeros((C, D, 1), np.float32)}},
    "classes": {"arrays": {"coef": np.zeros((C + 1, D), np.float32)}},
    "empty": {"arrays": {"mean": np.zeros(0, np.float32)}},
    "type": {"arrays": {"coef": np.zeros((C, D), np.float64)}},
    "extra": {"arrays": {"payload": np.zeros(3, np.float32)}},
    "format": {"format": "pickle"},
    "version": {"format_version": "2"},
    "no description": {"head": ""},
    "not json": {"head": "{"},
    "deep json": {"head": "[" * 100_000},
    "list": {"head": "[]"},
    "field gone": {"description": {"node": "gone"}},
    "field of another type": {"description": {"class_names": "abc"}},
    "number as text": {"description": {"temperature": "1"}},
    "boolean": {"description": {"n_train": True}},
    "form": {"description": {"form": "knn"}},
    "target kind": {"description": {"target_kind": "oracle"}},
    "negative temperature": {"description": {"temperature": -1}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case, tmp_path):
    path = written(tmp_path, **HOSTILE[case])
    with pytest.raises(ArtifactError) as caught:
        load_head(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "])
def test_files_that_are_no_heads(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        load_head(path)


def test_no_file(tmp_path):
    with pytest.raises(ArtifactError, match="no head file"):
        load_head(tmp_path / "gone.safetensors")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = linear().save(tmp_path / "h.safetensors")
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("bottleneck.files.os.replace", fail)
    with pytest.raises(ArtifactError, match="disk is full"):
        linear(temperature=3.0).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
