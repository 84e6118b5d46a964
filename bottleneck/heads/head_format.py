"""The file format of heads: the fields of the description, and the arrays of each form.

A head or model is checked here once, when it is made or loaded; what uses it later relies on that. The file
may come from a stranger or from a failing disk.

    metadata        format, format_version, head (the description as JSON), sha256
    sha256          of the whole file, with 64 zeros in place of the sum itself; files of version 1 have none
    arrays          of the form (`AXES`) in float32; from version 3 on, those of `BESIDE` too

Shapes: n samples, D features, H hidden units, K classes or labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, counted
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.names import COMPUTED_IN
from bottleneck.records import (
    are_numbers,
    are_objects,
    is_flag,
    is_integer,
    is_number,
    is_object,
    is_text,
    require_calibration,
    require_fields,
    require_known_fields,
)

FORMAT, FORMAT_VERSION = "bottleneck-head", 3
READ_VERSIONS = ("1", "2", "3")
MAX_DESCRIPTION = 64 << 20  # bytes of JSON
LINKS = {"class": ("softmax", "ovr"), "multilabel": ("sigmoid",), "regression": ("identity",)}
AXES = {  # of the arrays of each form
    "linear": {"coef": "KD", "intercept": "K"},
    "mlp": {"coef": "HD", "intercept": "H", "coef2": "KH", "intercept2": "K"},
    "knn": {"features": "nD", "answers": "nK"},
}
STANDARDISATION = {"mean": "D", "scale": "D"}
BESIDE = {"novelty.rows": "F16", "novelty.scores": "F32", "conformal.scores": "F32"}  # arrays, their types
LARGEST = 1e24  # of an array's numbers: a product with a feature and a sum of many stay far below 3e38
TEMPERATURES = (1e-30, 1e30)
MAX_IMAGES = 10_000  # per sample


def _is_count(value: Any) -> bool:
    return is_integer(value) and 0 <= value < 2**63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_text, value))


def _is_finite(value: Any) -> bool:
    return is_number(value) and -math.inf < value < math.inf


def _is_finite_or_null(value: Any) -> bool:
    return value is None or _is_finite(value)


def _are_finite_or_null(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_finite_or_null, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_count, value))


def _is_of_class(value: dict[str, Any]) -> bool:
    """Return whether figures of a class are its name, a count, and scores; these where it has samples."""
    scores = [value.get(name) for name in ("precision", "recall", "f1")]
    return (
        is_text(value.get("name"))
        and _is_count(value.get("n"))
        and _are_finite_or_null(scores)
        and (not value["n"] or None not in scores)
    )


FIELDS = {  # of the description, in the order of the file
    "kind": is_text,
    "form": is_text,
    "link": is_text,
    "target": is_text,
    "target_kind": is_text,
    "class_names": _are_texts,
    "node": is_text,
    "images_per_sample": _is_count,
    "covariate_names": _are_texts,
    "temperature": is_number,
    "C": _is_finite_or_null,
    "settings": is_object,
    "cv": is_object,
    "n_train": _is_count,
    "metrics": is_object,
    "backbone": is_object,
    "preprocess": is_object,
    "fingerprint": is_text,
    "node_fingerprint": is_text,
    "version": is_text,
}
OPTIONAL = {  # fields that files of earlier releases lack
    "columns": lambda value: is_object(value) and all(map(_are_texts, value.values())),
    "trained_on": is_object,
    "without": is_object,
    "computed": lambda value: is_object(value) and all(map(is_object, value.values())),
    "seed": lambda value: value is None or _is_count(value),
}
RECORDS = {"novelty": is_object, "conformal": is_object}  # that belong to arrays of `BESIDE`
BACKBONE = {  # fields of a recipe that are used before it is compared with the network
    "name": is_text,
    "weights": is_text,
    "seed": lambda value: value is None or _is_count(value),
    "in_channels": lambda value: _is_count(value) and value > 0,
    "depth": lambda value: value is None or _is_count(value),
    "image_size": lambda value: value is None or _is_count(value),
    "calibrated": is_flag,
}
WITHOUT = {"names": _is_count, "images": _is_count, "samples": _is_count, "sha256": is_text}
COMPUTED = {
    "precision": lambda value: value in COMPUTED_IN,
    "calibration": lambda value: value is None or is_object(value),
}
FIGURES = ("accuracy", "balanced_accuracy", "exact_match", "log_loss", "r2", "mae", "rmse")
METRICS = {
    **dict.fromkeys(FIGURES, _is_finite_or_null),
    "accuracy_ci95": lambda value: are_numbers(value) and len(value) == 2 and all(map(_is_finite, value)),
    "n": _is_count,
    "classes": _are_texts,
    "per_class": lambda value: are_objects(value) and all(map(_is_of_class, value)),
    "confusion": lambda value: isinstance(value, list) and all(map(_are_counts, value)),
}
CV = {  # scores of cross-validation by C
    "C": lambda value: are_numbers(value) and all(_is_finite(C) and C > 0 for C in value),
    "score": is_text,
    "mean": lambda value: are_numbers(value) and all(map(_is_finite, value)),
    "folds": lambda value: isinstance(value, list) and all(map(_are_finite_or_null, value)),
}
SETTINGS = {
    "k": lambda value: is_integer(value) and value > 0,
    "chosen_on": _are_texts,
    "fitted_on": _are_texts,
    "scales": lambda value: is_object(value) and all(_is_finite(s) and s >= 0 for s in value.values()),
    "flip": is_flag,
    "finetuned": lambda value: is_object(value) and is_text(value.get("input", "")),
}


def check_description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the description in a file's metadata; ArtifactError if one is of another type."""
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise ArtifactError(f"It contains tensors without a head: its format is {found}; expected {FORMAT}.")
    if metadata.get("format_version") not in READ_VERSIONS:
        raise ArtifactError(
            f"Its format version is {metadata.get('format_version')!r}; this release reads "
            f"{', '.join(READ_VERSIONS)}.",
            "Install a newer release.",
        )
    text = metadata.get("head", "")
    if len(text) > MAX_DESCRIPTION:
        raise ArtifactError(
            f"Its description has {len(text)} characters; at most {MAX_DESCRIPTION} are read."
        )
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        raise ArtifactError("Its description is not JSON.") from None
    require_fields(described, FIELDS, "Its description", others=True)
    optional = OPTIONAL | RECORDS
    require_known_fields(described, optional, "Its description")
    return {name: described[name] for name in (*FIELDS, *optional) if name in described}


def check_fields(head: Any) -> None:
    """Raise ArtifactError unless the fields of a `HeadArtifact` have values that a head can have."""
    if head.form not in AXES:
        raise ArtifactError(f"A head has form {head.form!r}; expected {', '.join(AXES)}.")
    if head.link not in LINKS.get(head.target_kind, ()):
        raise ArtifactError(f"A head for a {head.target_kind!r} target has link {head.link!r}.")
    low, high = TEMPERATURES
    if not low <= head.temperature <= high:
        raise ArtifactError(
            f"A head's temperature is {head.temperature}; expected a number from {low:g} to {high:g}."
        )
    if head.C is not None and not head.C > 0:
        raise ArtifactError(f"A head's C is {head.C}; expected a positive number or none.")
    if not 1 <= head.images_per_sample <= MAX_IMAGES:
        raise ArtifactError(
            f"A head takes {counted(head.images_per_sample, 'image')} a sample; expected 1 to {MAX_IMAGES:,}."
        )
    if len(set(head.class_names)) < len(head.class_names):
        twice = next(name for name in head.class_names if head.class_names.count(name) > 1)
        raise ArtifactError(f"A head has the class {twice!r} twice; expected different names.")
    if head.trained_on:
        TrainedOn.from_json(head.trained_on)
    require_known_fields(head.without, WITHOUT, "What was left out of a head")
    for node, record in head.computed.items():
        require_fields(record, COMPUTED, f"How features of {node!r} were computed")
        if record["precision"] == "int8" and not record["calibration"]:
            raise ArtifactError(f"A head's features of {node!r} are in int8, but without a calibration.")
        require_calibration(record["calibration"] or {}, f"The calibration of {node!r}")
    require_known_fields(head.backbone, BACKBONE, "A head's backbone")
    try:  # they have fingerprints
        json.dumps([head.backbone, head.preprocess, head.computed], allow_nan=False)
    except (ValueError, RecursionError):
        raise ArtifactError("A head's recipe or calibration holds NaN or infinite numbers.") from None
    require_known_fields(head.settings, SETTINGS, "The settings of a head")
    if head.form == "knn" and "k" not in head.settings:
        raise ArtifactError("The settings of a knn head lack k, the number of neighbours.")
    for split, values in head.metrics.items():
        if not isinstance(values, dict):
            raise ArtifactError(f"A head's metrics of {split!r} are {str(values)[:60]!r}, not an object.")
        require_known_fields(values, METRICS, f"A head's metrics of {split!r}")
        _check_confusions(values, f"A head's metrics of {split!r}")
    require_known_fields(head.cv, CV, "A head's cross-validation")
    _check_folds(head.cv)


def _check_confusions(metrics: Mapping[str, Any], what: str) -> None:
    """Raise ArtifactError unless a matrix of confusions has a row and a column for each class."""
    counts, K = metrics.get("confusion", []), len(metrics.get("classes", ()))
    if counts and {len(counts), *map(len, counts)} != {K}:
        raise ArtifactError(
            f"{what} have confusions in {counted(len(counts), 'row')}; expected {K} × {K}, as they have "
            f"{counted(K, 'class', 'classes')}."
        )


def _check_folds(cv: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless all scores of cross-validation are of the same values of C and folds."""
    G, means, folds = len(cv.get("C", ())), len(cv.get("mean", ())), cv.get("folds", [])
    if means != G or (folds and (len(folds) != G or len(set(map(len, folds))) > 1)):
        raise ArtifactError(
            f"A head's cross-validation has {counted(G, 'value')} of C, {counted(means, 'mean')}, and scores "
            f"of folds for {len(folds)}; expected as many of each."
        )


def check_arrays(form: str, target_kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ArtifactError if an array of a head has numbers with which it cannot predict."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ArtifactError(f"A head's array {name!r} holds NaN or infinite numbers.")
        if (largest := float(np.abs(array).max(initial=0))) > LARGEST:
            raise ArtifactError(
                f"A head's array {name!r} holds numbers up to {largest:.3g}; expected at most {LARGEST:g}."
            )
    if (smallest := float(np.abs(arrays["scale"]).min(initial=1))) < 1 / LARGEST:
        raise ArtifactError(f"A head's array 'scale' holds {smallest:.3g}; expected other numbers than 0.")
    if form == "knn" and target_kind != "regression":
        answers = arrays["answers"]
        if answers.min() < 0 or answers.max() > 1:
            raise ArtifactError("A knn head's answers are not from 0 to 1.")


def check_types(types: Mapping[str, str]) -> None:
    """Raise ArtifactError unless the arrays of a file have their types (of safetensors, by name)."""
    for name, kind in types.items():
        if kind != (expected := BESIDE.get(name, "F32")):
            raise ArtifactError(f"Array {name!r} has type {kind}; expected {expected}.")


def outputs_of(target_kind: str, class_names: Sequence[str]) -> int:
    """Return K."""
    return 1 if target_kind == "regression" else len(class_names)


def check_shapes(form: str, shapes: Mapping[str, tuple[int, ...]], outputs: int) -> None:
    """Raise ArtifactError unless the arrays are those of the form and their sizes agree, K = `outputs`."""
    axes = {**AXES.get(form, {}), **STANDARDISATION}
    if form not in AXES or set(shapes) != set(axes):
        raise ArtifactError(
            f"A {form!r} head has arrays {', '.join(sorted(shapes))}; expected {', '.join(axes)}."
        )
    sizes = {"K": outputs}
    for name, letters in axes.items():
        if len(shapes[name]) != len(letters):
            raise ArtifactError(f"Array {name!r} has shape {shapes[name]}; expected {len(letters)} axes.")
        for letter, size in zip(letters, shapes[name], strict=True):
            if sizes.setdefault(letter, size) != size or size < 1:
                raise ArtifactError(
                    f"Array {name!r} has shape {shapes[name]}; expected {letter} = {sizes[letter]}."
                )
