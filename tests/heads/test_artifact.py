"""The head file: what is written is read, and what a stranger wrote is refused."""

import errno
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from bottleneck.errors import ArtifactError
from bottleneck.heads.artifact import HeadArtifact, apply_link, load_head
from bottleneck.heads.novelty import Novelty
from bottleneck.heads.prediction_sets import Conformal

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


def with_trust():
    """A head with what --reject and --coverage need."""
    rows = np.eye(3, D, dtype=np.float16)
    novelty = Novelty(rows, np.arange(5, dtype=np.float32), ((0, D),))
    return linear(novelty=novelty, conformal=Conformal(np.arange(4, dtype=np.float32)))


def test_what_it_keeps_of_its_samples_is_read(tmp_path):
    head = with_trust()
    path = head.save(tmp_path / "h.safetensors")
    read = load_head(path)
    assert set(read.arrays) == set(head.arrays)
    for name in ("novelty", "conformal"):
        one, two = getattr(head, name), getattr(read, name)
        assert one.to_json() == two.to_json()
        assert (one.scores == two.scores).all()
    assert (read.novelty.rows == head.novelty.rows).all()
    assert read.novelty.rows.dtype == np.float16
    wide = Novelty(np.zeros((1, 9), np.float16), np.zeros(1, np.float32), ((0, 9),))
    with pytest.raises(ArtifactError, match="stored rows of 9 features"):
        linear(novelty=wide)


@pytest.mark.parametrize("make", [linear, mlp])
def test_what_is_written_is_read(make, tmp_path):
    head = make()
    assert load_head(head.save(tmp_path / "unknown.safetensors")).seed is None
    head = replace(head, seed=0)
    path = head.save(tmp_path / "머리" / "h.safetensors")
    read = load_head(path)
    x = np.random.default_rng(1).standard_normal((7, D)).astype(np.float32)
    assert (read.decision(x) == head.decision(x)).all()
    assert read.class_names == head.class_names
    assert read.seed == 0
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
    assert np.allclose(apply_link(np.array([[-1000.0, -1001.0]]), "ovr"), [[0.731059, 0.268941]])
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
    others = ("arrays", "novelty", "conformal")
    return {name: value for name, value in vars(head).items() if name not in others}


def computed(precision, calibration):
    """The change to a head file whose features were computed so."""
    return {"description": {"computed": {"n": {"precision": precision, "calibration": calibration}}}}


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
    "rows of another type": {"arrays": {"novelty.rows": np.zeros((3, D), np.float32)}},
    "novelty without rows": {"description": {"novelty": {"k": 3, "blocks": [[0, D]]}}},
    "novelty of text": {"description": {"novelty": "k"}},
    "sets without scores": {"description": {"conformal": {"rank": 5, "penalty": 0.01}}},
    "scores that are no list": {
        "arrays": {"conformal.scores": np.zeros((2, 2), np.float32)},
        "description": {"conformal": {"rank": 5, "penalty": 0.01}},
    },
    "format": {"format": "pickle"},
    "version": {"format_version": "4"},
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
    "nan in a recipe": {"description": {"backbone": {"name": "n", "other": np.nan}}},
    "unknown precision": computed("\x1b[31m", None),
    "nan in a calibration": computed("int8", {"pixels_sha256": "0" * 64, "cosine": [np.nan]}),
    "surrogate in a calibration": computed("int8", {"pixels_sha256": "\ud800"}),
    "int8 without a calibration": computed("int8", None),
    "calibration of no object": computed("int8", []),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case, tmp_path):
    path = written(tmp_path, **HOSTILE[case])
    with pytest.raises(ArtifactError) as caught:
        load_head(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(ArtifactError, match="no head file"):
        load_head(tmp_path / "gone.safetensors")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = linear().save(tmp_path / "h.safetensors")
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("bottleneck.files.os.replace", fail)
    with pytest.raises(ArtifactError, match="disk is full"):
        linear(temperature=3.0).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- checksum and values


def test_one_flipped_bit_is_refused_wherever_it_is(tmp_path):
    path = linear().save(tmp_path / "h.safetensors")
    data = path.read_bytes()
    assert load_head(path).notes == ()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError) as caught:
            load_head(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:200]]
)
def test_a_file_that_was_cut_or_lengthened_is_refused(change, tmp_path):
    path = linear().save(tmp_path / "h.safetensors")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError):
        load_head(path)


def test_the_checksum_is_the_sha256_of_the_file_with_zeros_in_its_place(tmp_path):
    path = linear().save(tmp_path / "h.safetensors")
    with safe_open(path, framework="np") as file:
        recorded = file.metadata()["sha256"]
    data = path.read_bytes()
    assert data.count(recorded.encode()) == 1
    assert hashlib.sha256(data.replace(recorded.encode(), b"0" * 64)).hexdigest() == recorded


def test_the_network_of_a_model_is_covered(tmp_path):
    path = linear().save(tmp_path / "m.safetensors", {"conv.weight": np.arange(6, dtype=np.float32)})
    data = path.read_bytes()
    place = data.index(np.float32(5).tobytes())
    path.write_bytes(data[:place] + np.float32(6).tobytes() + data[place + 4 :])
    with pytest.raises(ArtifactError, match="does not agree with its checksum"):
        load_head(path)


def test_a_file_of_version_1_loads_with_a_note(tmp_path):
    head = load_head(written(tmp_path))
    assert [note.code for note in head.notes] == ["head-without-checksum"]
    saved = head.save(tmp_path / "new.safetensors")
    assert load_head(saved).notes == ()


def test_a_file_of_version_2_without_a_checksum_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="has no checksum"):
        load_head(written(tmp_path, format_version="2"))


IMPOSSIBLE = {
    "temperature of 1e-320": ({"temperature": 1e-320}, "temperature is 1e-320; expected a number from"),
    "temperature of 1e200": ({"temperature": 1e200}, "temperature is 1e\\+200"),
    "infinite temperature": ({"temperature": float("inf")}, "temperature is inf"),
    "temperature of 400 digits": ({"temperature": 10**400}, "temperature"),
    "C of nothing": ({"C": 0}, "C is 0; expected a positive number"),
    "C not a number": ({"C": float("nan")}, "has C 'nan'"),
    "metrics of a split": ({"metrics": {"val": 0.5}}, "metrics of 'val' are '0.5', not an object"),
    "interval": ({"metrics": {"val": {"accuracy_ci95": "wide"}}}, "accuracy_ci95 'wide'"),
    "interval of one": ({"metrics": {"val": {"accuracy_ci95": [0.5]}}}, "accuracy_ci95"),
    "accuracy": ({"metrics": {"val": {"accuracy": "high"}}}, "accuracy 'high'"),
    "accuracy not a number": ({"metrics": {"val": {"accuracy": float("nan")}}}, "accuracy 'nan'"),
    "a class without scores": ({"metrics": {"val": {"per_class": [{"name": "a", "n": 3}]}}}, "per_class"),
    "a class without a number": ({"metrics": {"val": {"per_class": [{"name": "a"}]}}}, "per_class"),
    "classes that are one": ({"metrics": {"val": {"per_class": 3}}}, "per_class '3'"),
    "balanced accuracy": ({"metrics": {"val": {"balanced_accuracy": "high"}}}, "balanced_accuracy 'high'"),
    "confusions": ({"metrics": {"val": {"confusion": [[1, "x"], [0, 1]]}}}, "confusion"),
    "confusions of other classes": (
        {"metrics": {"val": {"confusion": [[1, 0], [0, 1]], "classes": ["a", "b", "c"]}}},
        "confusions in 2 rows; expected 3 × 3",
    ),
    "cross-validation at a text": ({"cv": {"C": "auto"}}, "C 'auto'"),
    "cross-validation without means": ({"cv": {"C": [0.1, 1.0]}}, "2 values of C, 0 means"),
    "folds of one C": (
        {"cv": {"C": [0.1, 1.0], "mean": [0.5, 0.5], "folds": [[0.5, None]]}},
        "2 values of C, 2 means, and scores of folds for 1; expected as many of each",
    ),
    "folds of other numbers": (
        {"cv": {"C": [0.1, 1.0], "mean": [0.5, 0.5], "folds": [[0.5], [0.5, 0.4]]}},
        "expected as many of each",
    ),
    "a score of 400 digits": ({"cv": {"C": [1.0], "mean": [0.5], "folds": [[10**400]]}}, "folds"),
    "seed": ({"backbone": {"name": "x", "weights": "none", "seed": "x"}}, "seed 'x'"),
    "seed that is negative": ({"backbone": {"name": "x", "seed": -1}}, "seed '-1'"),
    "name of the backbone": ({"backbone": {"name": 7}}, "name '7'"),
    "depth": ({"backbone": {"name": "x", "depth": "deep"}}, "depth 'deep'"),
    "chosen_on": ({"settings": {"chosen_on": 3}}, "chosen_on '3'"),
    "fitted_on": ({"settings": {"fitted_on": 3}}, "fitted_on '3'"),
    "finetuned": ({"settings": {"finetuned": ["layer4"]}}, "finetuned"),
    "classes twice": ({"class_names": ["a", "b", "a"]}, "class 'a' twice"),
    "images per sample": ({"images_per_sample": 10**9}, "images a sample; expected 1 to"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_values_that_no_head_can_have_are_refused_in_one_sentence(case, tmp_path):
    description, message = IMPOSSIBLE[case]
    with pytest.raises(ArtifactError, match=message) as caught:
        load_head(written(tmp_path, description=description))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3e38, -3e38, 2e24])
@pytest.mark.parametrize("name", ["coef", "intercept", "mean"])
def test_numbers_that_overflow_are_refused(name, value, tmp_path):
    array = np.full((C, D) if name == "coef" else C if name == "intercept" else D, value, np.float32)
    with pytest.raises(ArtifactError, match=f"array '{name}' holds numbers up to"):
        load_head(written(tmp_path, arrays={name: array}))


def test_a_scale_of_zero_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="'scale' holds 0"):
        load_head(written(tmp_path, arrays={"scale": np.zeros(D, np.float32)}))


@pytest.mark.parametrize("k", [None, 0, "many", 2.5])
def test_a_knn_head_needs_its_number_of_neighbours(k):
    arrays = {"features": np.ones((5, D)), "answers": np.eye(C)[[0, 1, 2, 0, 1]]}
    arrays |= {"mean": np.zeros(D), "scale": np.ones(D)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    settings = {} if k is None else {"k": k}
    with pytest.raises(ArtifactError, match="k"):
        linear(kind="knn", form="knn", arrays=arrays, settings=settings)


def test_outputs_that_are_no_numbers_are_refused():
    arrays = dict(linear().arrays) | {"coef": np.full((C, D), 1e20, np.float32)}
    with pytest.raises(ArtifactError, match="no finite numbers"):
        linear(arrays=arrays).decision(np.full((2, D), 1e20, np.float32))
