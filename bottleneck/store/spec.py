"""What a cache was computed with, and the fingerprints by which rows may be reused.

A fingerprint is the sha256 of canonical JSON (cache/FORMAT.md, section 2): two recipes have the same one
exactly where they are equal as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.names import BOTTLENECK, DTYPES, NATIVE

SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN = 60  # characters of a value in a message


def canonical_json(value: Any) -> str:
    """JSON text with sorted keys and no spaces; the same value always gives the same text.

    Lone surrogates, which stand for the bytes of a file name that is not UTF-8, are written as escapes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class CacheSpec:
    """What all rows of a cache have in common.

    Parameters
    ----------
    backbone : dict
        JSON recipe of the network: architecture, weights and their sha256.
    preprocess : dict
        JSON recipe of the way from a file to the network's input.
    """

    backbone: dict
    preprocess: dict

    def __post_init__(self) -> None:
        # Through JSON and back, so that a tuple given and the list read from a file compare equal.
        for name in ("backbone", "preprocess"):
            object.__setattr__(self, name, json.loads(canonical_json(getattr(self, name))))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of both recipes."""
        return fingerprint(self.to_json())

    def to_json(self) -> dict:
        """{"backbone", "preprocess"}."""
        return {"backbone": self.backbone, "preprocess": self.preprocess}


@dataclass(frozen=True)
class NodeSpec:
    """How one node's rows were computed and are stored.

    Parameters
    ----------
    node, pool : str
        Node of the backbone, and how its map became a row; "none" keeps the map.
    shape : tuple of int
        Shape of one image's row: (D,), or (C, H, W) … for a map.
    dtype : {"float16", "float32"}
        Type of storage.
    precision : str
        Arithmetic of the network: "fp32", "bf16", "fp16", "int8".
    layout : str
        Axes with the images' first: "NC", "NCHW", "NLC".
    views : dict, optional
        JSON recipe of augmented views with their number under "count".
    calibration : dict, optional
        JSON recipe of an int8 network's calibration.
    """

    node: str
    pool: str
    shape: tuple[int, ...]
    dtype: str = "float16"
    precision: str = "fp32"
    layout: str = "NC"
    views: dict | None = None
    calibration: dict | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CacheError(f"Features cannot be stored as {self.dtype!r}; choose {' or '.join(DTYPES)}.")
        shape = tuple(int(size) for size in self.shape)
        if not shape or min(shape) < 1:
            raise CacheError(f"A row of node {self.node!r} has shape {shape}; expected sizes of at least 1.")
        object.__setattr__(self, "shape", shape)
        for name in ("views", "calibration"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else json.loads(canonical_json(value)))
        if self.views is not None and int(self.views.get("count", 0)) < 1:
            raise CacheError(f"The views of node {self.node!r} have no positive 'count': {self.views}.")

    @property
    def name(self) -> str:
        """NODE, or NODE@POOL where the pool is not the node's default."""
        default = NATIVE if self.node == BOTTLENECK else "avg"
        return self.node if self.pool == default else f"{self.node}@{self.pool}"

    @property
    def is_map(self) -> bool:
        """True where a row has more than one axis; such a node has a file of its own."""
        return len(self.shape) > 1

    @property
    def views_shape(self) -> tuple[int, ...]:
        """Shape of one image's views: (V, …)."""
        return (int(self.views["count"]), *self.shape)

    @property
    def row_bytes(self) -> int:
        """What one image takes in the cache, its views included."""
        values = prod(self.shape) + (0 if self.views is None else prod(self.views_shape))
        return values * np.dtype(self.dtype).itemsize

    def fingerprint(self, cache: CacheSpec, views: bool = False) -> str:
        """Fingerprint of this node's rows (`views`: of its views) in a cache with the recipe `cache`."""
        return fingerprint(
            {
                "cache": cache.fingerprint,
                "node": self.node,
                "pool": self.pool,
                "dtype": self.dtype,
                "precision": self.precision,
                "layout": self.layout,
                "calibration": self.calibration,
                "views": self.views if views else None,
            }
        )

    def to_json(self) -> dict:
        """All fields as JSON; `from_json` reads it."""
        names = ("node", "pool", "dtype", "precision", "layout", "views", "calibration")
        return {name: getattr(self, name) for name in names} | {"shape": list(self.shape)}

    @staticmethod
    def from_json(value: Mapping) -> NodeSpec:
        """The node that `to_json` described; CacheError where a field is absent or not of its type."""
        try:
            return NodeSpec(**{**value, "shape": tuple(value["shape"])})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CacheError(f"A node's description cannot be read: {error}.") from None


def differences(ours: Mapping, theirs: Mapping) -> list[str]:
    """Dotted names of the fields in which two JSON objects differ, in order; an absent field differs."""
    names = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{key}.{name}" for name in differences(a, b)]
        elif a != b or (key in ours) != (key in theirs):
            names.append(key)
    return names


def require_equal(cached: Mapping, asked: Mapping, where: str, hint: str) -> None:
    """Raise FingerprintError where `cached` and `asked` differ, naming each field with both values."""
    fields = differences(cached, asked)
    if fields:
        shown = [f"{name} is {_show(cached, name)} there, {_show(asked, name)} here" for name in fields[:4]]
        more = [f"{len(fields) - 4} more"] if len(fields) > 4 else []
        raise FingerprintError(
            f"{where} was made with other settings: {'; '.join(shown + more)}.", hint, fields=tuple(fields)
        )


def _show(value: Any, dotted: str) -> str:
    """The value at a dotted name, short enough for one line."""
    for key in _path(value, dotted):
        value = value.get(key) if isinstance(value, Mapping) else None
    text = "absent" if value is None else canonical_json(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _path(value: Any, dotted: str) -> Sequence[str]:
    """Split a dotted name into keys; a key may hold dots of its own, so the longest key present is taken."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        key = ".".join(parts[:end])
        if isinstance(value, Mapping) and key in value:
            return [key, *_path(value[key], ".".join(parts[end:]))] if parts[end:] else [key]
    return parts
