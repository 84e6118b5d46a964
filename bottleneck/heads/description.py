"""What a head file may say of itself, checked before any of its arrays is read: it may be a stranger's.

Shapes: n samples, D features, H hidden units, C classes or labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bottleneck.errors import ArtifactError

FORMAT, FORMAT_VERSION = "bottleneck-head", 1
MAX_DESCRIPTION = 64 << 20  # bytes of JSON
LINKS = {"class": ("softmax", "ovr"), "multilabel": ("sigmoid",), "regression": ("identity",)}
AXES = {  # of the arrays of each form, as `artifact` describes them
    "linear": {"coef": "CD", "intercept": "C"},
    "mlp": {"coef": "HD", "intercept": "H", "coef2": "CH", "intercept2": "C"},
    "knn": {"features": "nD", "answers": "nC"},
}
STANDARDISATION = {"mean": "D", "scale": "D"}


def description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of the artifact without its arrays, each of its type."""
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"Its format is {metadata.get('format')!r}; expected {FORMAT!r}.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ArtifactError(
            f"Its format version is {metadata.get('format_version')!r}; this release reads {FORMAT_VERSION}.",
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
    if not isinstance(described, dict):
        raise ArtifactError("Its description is not a JSON object.")
    for name, accept in _TYPES.items():
        if name not in described:
            raise ArtifactError(f"Its description lacks {name!r}.")
        if not accept(described[name]):
            raise ArtifactError(f"Its {name!r} is {str(described[name])[:60]!r}, which is not of its type.")
    return {name: described[name] for name in _TYPES}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_TYPES = {
    **dict.fromkeys(("kind", "form", "link", "target", "target_kind", "node"), _is_text),
    **dict.fromkeys(("fingerprint", "node_fingerprint", "version"), _is_text),
    **dict.fromkeys(("settings", "cv", "metrics", "backbone", "preprocess"), _is_object),
    **dict.fromkeys(("class_names", "covariate_names"), _are_texts),
    **dict.fromkeys(("images_per_sample", "n_train"), _is_count),
    "temperature": _is_number,
    "C": lambda value: value is None or _is_number(value),
}


def check_shapes(form: str, shapes: Mapping[str, tuple[int, ...]], outputs: int) -> None:
    """Exactly the form's arrays, all sizes in agreement with one another and with C."""
    axes = {**AXES.get(form, {}), **STANDARDISATION}
    if form not in AXES or set(shapes) != set(axes):
        raise ArtifactError(
            f"A {form!r} head has arrays {', '.join(sorted(shapes))}; expected {', '.join(axes)}."
        )
    sizes = {"C": outputs}
    for name, letters in axes.items():
        if len(shapes[name]) != len(letters):
            raise ArtifactError(f"Array {name!r} has shape {shapes[name]}; expected {len(letters)} axes.")
        for letter, size in zip(letters, shapes[name], strict=True):
            if sizes.setdefault(letter, size) != size or size < 1:
                raise ArtifactError(
                    f"Array {name!r} has shape {shapes[name]}; expected {letter} = {sizes[letter]}."
                )
