"""A fitted head as one file: arrays in safetensors, the rest as JSON in its metadata. Nothing is pickled.

    form    arrays                                            logits of raw features x (D,)
    linear  coef (K, D), intercept (K,)                       coef · x + intercept
    mlp     coef (H, D), intercept (H,),                      h = relu(coef · x + intercept),
            coef2 (K, H), intercept2 (K,)                     coef2 · h + intercept2
    knn     features (n, D), answers (n, K)                   log of the neighbours' mean answer

All forms have mean (D,) and scale (D,): the standardisation that is already folded into coef (and into
features), so that training can continue in standardised coordinates. Prediction needs numpy alone. A file may
come from a stranger: names, types and sizes are checked before any array is read.

A head may keep what it needs to say that a sample is unlike those of training (`novelty`, arrays
novelty.rows (r, D') float16 and novelty.scores (m,)), and for sets of classes (`prediction_sets`, array
conformal.scores (m,)).

Shapes: n samples, D features (M images side by side, then P covariates), H hidden units, K classes or labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from bottleneck import __version__
from bottleneck.errors import ArtifactError, Note, counted
from bottleneck.files import other_than_file, write_whole
from bottleneck.heads.head_format import (
    BESIDE,
    FIELDS,
    FORMAT,
    FORMAT_VERSION,
    OPTIONAL,
    check_arrays,
    check_description,
    check_fields,
    check_shapes,
    check_types,
    outputs_of,
)
from bottleneck.heads.novelty import Novelty
from bottleneck.heads.prediction_sets import Conformal
from bottleneck.heads.tensor_file import AGAIN, fault_of, has_checksum, sealed
from bottleneck.names import BOTTLENECK, STATE_PREFIX

SIMILARITIES = 1 << 22  # of kNN that are computed at a time


@dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """What a head predicts, and from which features.

    Parameters
    ----------
    target, target_kind, class_names : as of `bottleneck.samples.Target`.
    node : NODE or NODE@POOL whose rows the head takes; A+B for several side by side.
    images_per_sample : M. covariate_names : P names. The input is M images' features, then the covariates.
    backbone, preprocess : JSON recipes of the cache. fingerprint : of the cache.
    node_fingerprint : of the node's rows.
    columns : of the manifest that the samples came from, by role (`SampleTable.columns`); {} without one.
    trained_on : the images that it was fitted on, as `TrainedOn.to_json`; {} where they are not known.
    without : what was left out of the fit by a list, as `fitting.left_out.LeftOut.record`; {} for nothing.
    computed : by node, {"precision", "calibration"} of features that were computed in bf16 or int8, as of
        `NodeSpec`, and of other nodes of the cache that an int8 graph computed with them; nodes in float32 or
        float16 are absent, as are all in files of earlier releases.
    seed : of the folds and of what else of the fit is drawn; None where it is not known.
    """

    target: str = "label"
    target_kind: str = "class"
    class_names: tuple[str, ...] = ()
    node: str = BOTTLENECK
    images_per_sample: int = 1
    covariate_names: tuple[str, ...] = ()
    backbone: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    node_fingerprint: str = ""
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict, repr=False)
    without: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class HeadArtifact(HeadDescription):
    """A head that predicts, and its description.

    Parameters
    ----------
    kind : "logistic", "ridge", "nearest-mean", "knn" or "mlp", as `fit-head --head` names it.
    form : "linear", "mlp" or "knn": which arrays there are (see the module).
    arrays : dict of str to float32 array
    link : how logits become probabilities: "softmax", "ovr" (sigmoids, normalised), "sigmoid", "identity".
    temperature : logits are divided by it before the link (Guo et al. 2017).
    C : inverse strength of the penalty; None for heads without one. settings : other choices by name.
    cv : scores of cross-validation, n_train : samples fitted on, metrics : {split: {…}} as of `metrics`.
    version : of this package when the head was made.
    novelty : of samples, compared with those of training. conformal : for sets of classes. None where the
        head was made without.
    notes : on how the file was read; they are not written.
    """

    kind: str
    form: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    link: str = "softmax"
    temperature: float = 1.0
    C: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    cv: dict[str, Any] = field(default_factory=dict)
    n_train: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    novelty: Novelty | None = field(default=None, compare=False, repr=False)
    conformal: Conformal | None = field(default=None, compare=False, repr=False)
    notes: tuple[Note, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "covariate_names", tuple(self.covariate_names))
        object.__setattr__(self, "columns", {role: tuple(names) for role, names in self.columns.items()})
        check_fields(self)
        shapes = {name: array.shape for name, array in self.arrays.items()}
        check_shapes(self.form, shapes, self.outputs)
        check_arrays(self.form, self.target_kind, self.arrays)
        if self.novelty and self.novelty.width > self.n_features:
            raise ArtifactError(
                f"A head of {counted(self.n_features, 'feature')} has stored rows of "
                f"{counted(self.novelty.width, 'feature')}."
            )

    @property
    def outputs(self) -> int:
        """K: the number of classes or labels, 1 for a regression."""
        return outputs_of(self.target_kind, self.class_names)

    @property
    def n_features(self) -> int:
        """D: length of one input row."""
        return self.arrays["mean"].shape[0]

    @property
    def coef(self) -> np.ndarray:
        """(K, D) on raw features, (H, D) of the first layer of an mlp."""
        return self.arrays["coef"]

    @property
    def intercept(self) -> np.ndarray:
        """(K,) or (H,)."""
        return self.arrays["intercept"]

    @property
    def mean(self) -> np.ndarray:
        """(D,) of the training rows."""
        return self.arrays["mean"]

    @property
    def scale(self) -> np.ndarray:
        """(D,) standard deviation of the training rows; 1 where a feature is constant."""
        return self.arrays["scale"]

    def code_of(self, name: str) -> int:
        """Return the code of a class or label that the user named; ArtifactError if there is none."""
        if self.target_kind == "regression":
            raise ArtifactError(
                f"The head predicts {self.target!r}, a quantity, and has no class {name!r}.",
                "Leave --class out.",
            )
        if name not in self.class_names:
            close = get_close_matches(name, self.class_names, n=4, cutoff=0.4) or self.class_names[:8]
            raise ArtifactError(
                f"The head has no class {name!r}; it has {len(self.class_names)}, such as {', '.join(close)}."
            )
        return self.class_names.index(name)

    def decision(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, K) of raw features (n, D) before the temperature; values (n, 1) of a regression."""
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise ArtifactError(
                f"Features have shape {features.shape}; this head takes (n, {self.n_features}).",
                f"It was fitted on node {self.node!r}, {self.images_per_sample} image(s) a sample "
                f"and {len(self.covariate_names)} covariate(s).",
            )
        x = features.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self._neighbours(x) if self.form == "knn" else self._layers(x)
        if not (logits < np.inf).all():  # True for NaN, too
            raise ArtifactError(
                "The head's outputs for these features are no finite numbers: its coefficients or the "
                "features are too large.",
                "Look at the features with `bottleneck cache info`, or fit the head again.",
            )
        return logits

    def _layers(self, x: np.ndarray) -> np.ndarray:
        logits = x @ self.coef.T + self.intercept
        if self.form == "mlp":
            logits = np.maximum(logits, 0) @ self.arrays["coef2"].T + self.arrays["intercept2"]
        return logits

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (n, K) for raw features (n, D), at the head's temperature; (n,) values of a regression."""
        return apply_link(self.decision(features), self.link, self.temperature)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return codes (n,) of classes, 0 and 1 (n, K) of labels, or values (n,) of a regression."""
        probabilities = self.probabilities(features)
        if self.target_kind == "class":
            return probabilities.argmax(axis=1)
        return (probabilities > 0.5).astype(np.uint8) if self.target_kind == "multilabel" else probabilities

    def _neighbours(self, x: np.ndarray) -> np.ndarray:
        """Return the log of the mean answer of the k nearest training rows, (n, K).

        One vote is added that is spread over the classes as they occur in training, so that no class has
        probability 0.
        """
        rows, answers = self.arrays["features"], self.arrays["answers"]
        k = min(int(self.settings["k"]), len(rows))
        unit = (x - self.mean) / self.scale
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        out = np.empty((len(x), answers.shape[1]))
        step = max(1, SIMILARITIES // len(rows))
        for start in range(0, len(x), step):
            similarity = unit[start : start + step] @ rows.T
            nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            out[start : start + step] = answers[nearest].mean(axis=1)
        if self.target_kind == "regression":
            return out
        prior = answers.mean(axis=0)
        share = (k * out + prior) / (k + 1)
        if self.target_kind == "class":
            return np.log(share)
        return np.log(share) - np.log1p(-np.minimum(share, 1 - 1e-9))

    def save(self, path: str | os.PathLike[str], network: Mapping[str, np.ndarray] | None = None) -> Path:
        """Write the file in one rename, and return its path. The folder is made.

        network : state of a trained backbone by name, which makes the file a model (`backbones.model_file`).
        """
        path = Path(path)
        described = {name: getattr(self, name) for name in FIELDS}
        described |= {name: getattr(self, name) for name in OPTIONAL if getattr(self, name) not in (None, {})}
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in self.arrays.items()}
        if self.novelty:
            described["novelty"] = self.novelty.to_json()
            arrays["novelty.rows"] = np.ascontiguousarray(self.novelty.rows, np.float16)
            arrays["novelty.scores"] = np.ascontiguousarray(self.novelty.scores, np.float32)
        if self.conformal:
            described["conformal"] = self.conformal.to_json()
            arrays["conformal.scores"] = np.ascontiguousarray(self.conformal.scores, np.float32)
        text = json.dumps(described, ensure_ascii=False, default=_plain, allow_nan=False)
        for name, tensor in (network or {}).items():
            arrays[f"{STATE_PREFIX}{name}"] = np.array(tensor, order="C")
        meta = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "head": text}
        write_whole(path, sealed(to_safetensors(arrays, metadata=meta)))
        return path


def apply_link(logits: np.ndarray, link: str, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities (n, K) of logits (n, K); for "identity" the values (n,) of (n, 1)."""
    if link == "identity":
        return np.asarray(logits, np.float64)[:, 0]
    z = np.asarray(logits, np.float64) / temperature
    if link == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * z))  # without overflow
    if link == "ovr":
        z = -np.logaddexp(0, -z)  # logarithms of the sigmoids, which may all be too small for a float
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def load_head(path: str | os.PathLike[str]) -> HeadArtifact:
    """Read a head file.

    Raises
    ------
    ArtifactError
        There is no such file, it is not a head, or it is damaged.
    """
    path = Path(path)
    require_file(path)
    try:
        with safe_open(path, framework="np") as file:
            with_sum = has_checksum(path)
            metadata = file.metadata() or {}
            described = check_description(metadata)
            if not with_sum and metadata["format_version"] != "1":
                raise ArtifactError("It has no checksum, which files of its version have: it was damaged.")
            names = [name for name in file.keys() if not name.startswith(STATE_PREFIX)]  # noqa: SIM118
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            check_types({name: file.get_slice(name).get_dtype() for name in shapes})
            outputs = outputs_of(described["target_kind"], described["class_names"])
            own = {name: shape for name, shape in shapes.items() if name not in BESIDE}
            check_shapes(described["form"], own, outputs)
            arrays = {name: file.get_tensor(name) for name in shapes}
            described |= _read_beside(
                described, {name: arrays.pop(name) for name in BESIDE if name in arrays}
            )
            return HeadArtifact(arrays=arrays, notes=() if with_sum else (_note_old(path),), **described)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is not a usable head. {error.message}", error.hint) from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} {fault_of(path, error)}; expected a head or model file.", AGAIN
        ) from None


def _read_beside(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the fields novelty and conformal of a head, from its description and the arrays of `BESIDE`."""
    fields: dict[str, Any] = {"novelty": None, "conformal": None}
    if described.get("novelty"):
        fields["novelty"] = Novelty.from_json(
            described["novelty"], arrays["novelty.rows"], arrays["novelty.scores"]
        )
    if described.get("conformal"):
        fields["conformal"] = Conformal.from_json(described["conformal"], arrays["conformal.scores"])
    return fields


def require_file(path: Path) -> None:
    """Raise ArtifactError unless `path` is a file, which may be a head or a model."""
    make = "Make one with `bottleneck fit-head CACHE`."
    if not path.exists():
        raise ArtifactError(f"There is no head file {path}.", make)
    if not path.is_file():
        inside = min(path.glob("*.safetensors"), default=None)
        hint = f"Give for example {inside}." if inside else make
        raise ArtifactError(f"{path} is {other_than_file(path)}; expected a head or model file.", hint)


def _note_old(path: Path) -> Note:
    return Note(
        "head-without-checksum",
        f"{path} was written by an earlier version, without a checksum: whether it is intact cannot be told. "
        "Make it again to have one.",
        details={"path": str(path)},
    )


def _plain(value: Any) -> Any:
    """Return a numpy scalar or array as JSON values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be part of a head's description")
