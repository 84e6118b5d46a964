"""The settings that a cache was computed with, and the fingerprints that decide which rows may be reused.

A fingerprint is the sha256 of canonical JSON (cache/FORMAT.md, section 2). Two recipes have the same
fingerprint if and only if they are equal as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import prod
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, CacheError, FingerprintError, Note, first_line
from bottleneck.names import COMPUTED_IN, DTYPES, POOLS, default_pool
from bottleneck.records import (
    Check,
    is_integer,
    is_number,
    is_text,
    require_calibration,
    require_known_fields,
)

SURROGATE = re.compile("[\ud800-\udfff]")
OTHER_SOURCE = "If the images have moved there, add --source-moved; else give another file with -o."
CLOSE = 0.8  # of names that may be one, as difflib measures it
DIGITS = re.compile("[0-9]+")
SHA256 = re.compile("[0-9a-f]{64}")
SHOWN = 60  # characters of a value in a message


def canonical_json(value: Any) -> str:
    """Return JSON text with sorted keys and no spaces; equal values give equal texts.

    Surrogates, which stand for the bytes of a file name that is not UTF-8, are written as escapes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def fingerprint(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def link_name(name: str) -> str:
    """Return the HDF5 link name, also used in file names, of a node or a target."""
    return "%2E" if name == "." else name.replace("%", "%25").replace("/", "%2F")


def name_of_link(link: str) -> str:
    """Return the name that `link_name` encoded."""
    return link.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


@dataclass(frozen=True)
class CacheSpec:
    """Recipes of the network and of its input, which all rows of a cache share.

    Parameters
    ----------
    backbone : dict
        JSON recipe of the network: architecture, weights and their sha256.
    preprocess : dict
        JSON recipe of the steps from an image file to the network's input.
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
        """Return {"backbone", "preprocess"}."""
        return {"backbone": self.backbone, "preprocess": self.preprocess}


@dataclass(frozen=True)
class Origin:
    """The origin of the rows of a cache: the recipes, and the place of the images.

    Parameters
    ----------
    spec : CacheSpec
    source_root : str
        Folder or URL that the keys are relative to.
    source : str, optional
        Folder, manifest, shard or URL that was extracted; `source_root` where it is not recorded. Several
        sources may have one root, so this is no part of the comparison of two origins.
    """

    spec: CacheSpec
    source_root: str
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("source_root", "source"):
            text = str(getattr(self, name) or self.source_root)  # bytes that are no UTF-8 are escaped
            object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode())

    def to_json(self) -> dict:
        """Return {"backbone", "preprocess", "source_root", "source"}."""
        return self.spec.to_json() | {"source_root": self.source_root, "source": self.source}

    def require_equal(self, requested: Origin, where: str, hint: str, moved: bool = False) -> None:
        """Raise FingerprintError if a writer that requests another origin opens this cache.

        moved : the requested source root may be another
        """
        require_equal(self.spec.to_json(), requested.spec.to_json(), where, hint)
        if not moved:
            ours, theirs = ({"source_root": origin.source_root} for origin in (self, requested))
            require_equal(ours, theirs, where, OTHER_SOURCE)


@dataclass(frozen=True)
class NodeSpec:
    """How one node's rows were computed and are stored.

    Parameters
    ----------
    node, pool : str
        Node of the backbone, and the pooling that made its map a row; "none" stores the map itself.
    shape : tuple of int
        Shape of one image's row: (D,), or (C, H, W) … for a map.
    dtype : {"float16", "float32"}
        Type of the stored values.
    precision : str
        Arithmetic of the network: "fp32", "bf16", "fp16", "int8".
    layout : str
        Axes of the dataset, images first: "NC", "NCHW", "NLC".
    views : dict, optional
        JSON recipe of augmented views; "count" is their number V.
    calibration : dict, optional
        JSON record of the engine in int8 or bf16: how it was calibrated, and its agreement with float32.
    aliases : tuple of str
        Other names of `node` in the network; they make no difference between two nodes.
    decoding_agreement : dict, optional
        Where images are not decoded exactly: "cosine", the mean of the features with those of exact decoding
        (None where no image differed), "images" that differed, "of" as many that were looked at. It makes no
        difference between two nodes: the recipe of the preprocessing does.
    calibrated_on : tuple of str, optional
        sha256, in hexadecimal, of the image files of an int8 calibration, in its order: its graph can be made
        again of them. It makes no difference between two nodes: the calibration does. Empty in files of
        earlier releases.
    """

    node: str
    pool: str
    shape: tuple[int, ...]
    dtype: str = "float16"
    precision: str = "fp32"
    layout: str = "NC"
    views: dict | None = None
    calibration: dict | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)
    decoding_agreement: dict | None = field(default=None, compare=False)
    calibrated_on: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CacheError(f"Features cannot be stored as {self.dtype!r}; choose {' or '.join(DTYPES)}.")
        shape = tuple(int(size) for size in self.shape)
        if not shape or min(shape) < 1:
            raise CacheError(f"A row of node {self.node!r} has shape {shape}; expected sizes of at least 1.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "aliases", tuple(map(str, self.aliases)))
        for name in ("views", "calibration", "decoding_agreement"):
            value = getattr(self, name)
            if name != "calibration" and not _is_object_or_null(value):  # which has checks of its own
                raise ValueError(f"{name} of node {self.node!r} is {str(value)[:SHOWN]!r}, no object")
            object.__setattr__(self, name, None if value is None else json.loads(canonical_json(value)))
        require_known_fields(self.decoding_agreement or {}, AGREEMENT, "An agreement of both decodings")
        object.__setattr__(self, "calibrated_on", tuple(self.calibrated_on))
        if not all(isinstance(each, str) and SHA256.fullmatch(each) for each in self.calibrated_on):
            raise ValueError(f"the calibration images of node {self.node!r} are no list of sha256")
        if self.views is not None and int(self.views.get("count", 0)) < 1:
            raise CacheError(f"The views of node {self.node!r} have no positive 'count': {self.views}.")

    @property
    def name(self) -> str:
        """NODE, or NODE@POOL if the pool is not the node's default."""
        return self.node if self.pool == default_pool(self.node) else f"{self.node}@{self.pool}"

    def is_called(self, name: str) -> bool:
        """Return whether `name`, NODE or NODE@POOL, is the node's name or another one of it."""
        node, _, pool = name.partition("@")
        return node in (self.node, *self.aliases) and (pool or default_pool(self.node)) == self.pool

    def may_be_meant(self, name: str) -> bool:
        """Return whether `name` may be a misspelling of the node's name: another number or pool is not."""
        node, _, pool = name.casefold().replace(" ", "").partition("@")
        if pool in POOLS and pool != self.pool:
            return False
        names = (self.node, *self.aliases)
        numbered = [other for other in names if DIGITS.findall(other) == DIGITS.findall(node)]
        return bool(get_close_matches(node, [other.casefold() for other in numbered], cutoff=CLOSE))

    @property
    def is_map(self) -> bool:
        """True if a row has more than one axis; such a node has a file of its own."""
        return len(self.shape) > 1

    @property
    def computed_exactly(self) -> bool:
        """Whether the rows were computed more finely than float16 stores them; not in bf16 and int8."""
        return self.precision in ("fp32", "fp16")

    @property
    def views_shape(self) -> tuple[int, ...]:
        """Shape of one image's views: (V, …)."""
        return (0 if self.views is None else int(self.views["count"]), *self.shape)

    def bytes_of(self, images: int) -> int:
        """Return the bytes that the rows of `images` images take, their views included."""
        values = prod(self.shape) + (0 if self.views is None else prod(self.views_shape))
        return images * values * np.dtype(self.dtype).itemsize

    def dataset(self, views: bool = False) -> str:
        """Return the path of the node's features, or of its views, in an HDF5 file."""
        return f"{'views' if views else 'features'}/{link_name(self.name)}"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Paths of all datasets of the node: its features and, with a recipe for them, its views."""
        return (self.dataset(),) if self.views is None else (self.dataset(), self.dataset(views=True))

    def fingerprint(self, cache: CacheSpec, views: bool = False) -> str:
        """Return the fingerprint of the node's rows, or of its views, in a cache with the recipes `cache`."""
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

    def with_facts_of(self, other: NodeSpec) -> NodeSpec:
        """Return the node with what only the description of the same node `other` tells beside the recipe."""
        return replace(
            self,
            aliases=self.aliases or other.aliases,
            decoding_agreement=self.decoding_agreement or other.decoding_agreement,
            calibrated_on=self.calibrated_on or other.calibrated_on,
        )

    def to_json(self) -> dict:
        """Return all fields as JSON, for `from_json`."""
        optional = {"decoding_agreement": self.decoding_agreement, "calibrated_on": list(self.calibrated_on)}
        return self.recipe() | {name: value for name, value in optional.items() if value}

    def recipe(self) -> dict:
        """Return the fields of two nodes that are compared, as JSON."""
        names = ("node", "pool", "dtype", "precision", "layout", "views", "calibration")
        return {name: getattr(self, name) for name in names} | {
            "shape": list(self.shape),
            "aliases": list(self.aliases),
        }

    @staticmethod
    def from_json(value: Mapping) -> NodeSpec:
        """Return the node that `to_json` described. Raises CacheError if a field is absent or malformed."""
        try:
            require_known_fields(value, NODE_FIELDS, "The record")
            if value.get("calibration") is not None or value["precision"] == "int8":
                require_calibration(value.get("calibration"), "Its calibration")
            return NodeSpec(**{**value, "shape": tuple(value["shape"])})
        except (TypeError, KeyError, ValueError, AttributeError, ArtifactError) as error:
            raise CacheError(f"A node's description cannot be read: {first_line(error)}.") from None


def _is_object_or_null(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


AGREEMENT: dict[str, Check] = {  # fields of `NodeSpec.decoding_agreement`
    "cosine": lambda value: value is None or is_number(value),
    "images": is_integer,
    "of": is_integer,
}

NODE_FIELDS: dict[str, Check] = {
    **dict.fromkeys(("node", "pool", "dtype", "layout"), is_text),
    "precision": lambda value: value in COMPUTED_IN,
    "shape": lambda value: isinstance(value, list) and all(map(is_integer, value)),
    **dict.fromkeys(("views", "calibration", "decoding_agreement"), _is_object_or_null),
    **dict.fromkeys(("aliases", "calibrated_on"), lambda value: isinstance(value, list)),
}


def vector_fingerprint(nodes: Sequence[NodeSpec], cache: CacheSpec) -> str:
    """Return the fingerprint of the rows of nodes side by side, in a cache with the recipes `cache`."""
    found = [node.fingerprint(cache) for node in nodes]
    return found[0] if len(found) == 1 else fingerprint(found)


def stored_name(nodes: Mapping[str, NodeSpec], name: str) -> str | None:
    """Return the name in `nodes` of the node that is called `name`; None if there is none."""
    if name in nodes:
        return name
    return next((stored for stored, node in nodes.items() if node.is_called(name)), None)


def alias_note(name: str, stored: str) -> Note:
    """Return the note that a node was named otherwise than it is stored."""
    text = f"Node {name!r} is stored as {stored!r}: two names of the same features."
    return Note("node-alias", text, details={"given": name, "node": stored})


def differences(ours: Mapping, theirs: Mapping) -> list[str]:
    """Return the sorted dotted names of the fields that differ or are absent in one of two JSON objects."""
    names = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{key}.{name}" for name in differences(a, b)]
        elif a != b or (key in ours) != (key in theirs):
            names.append(key)
    return names


def require_equal(cached: Mapping, requested: Mapping, where: str, hint: str) -> None:
    """Raise FingerprintError if `cached` and `requested` differ; the message names fields and both values."""
    fields = differences(cached, requested)
    if fields:
        shown = [
            f"{name} is {_show(cached, name)} there, {_show(requested, name)} here" for name in fields[:4]
        ]
        more = [f"{len(fields) - 4} more"] if len(fields) > 4 else []
        raise FingerprintError(
            f"{where} was made with other settings: {'; '.join(shown + more)}.", hint, fields=tuple(fields)
        )


def _show(value: Any, dotted: str) -> str:
    """Return the value at a dotted name as text, short enough for one line."""
    for key in _path(value, dotted):
        value = value.get(key) if isinstance(value, Mapping) else None
    text = "absent" if value is None else canonical_json(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _path(value: Any, dotted: str) -> Sequence[str]:
    """Split a dotted name into keys. A key may contain dots, so the longest key that is present is used."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        key = ".".join(parts[:end])
        if isinstance(value, Mapping) and key in value:
            return [key, *_path(value[key], ".".join(parts[end:]))] if parts[end:] else [key]
    return parts
