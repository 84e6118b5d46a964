"""The plan of an extraction in a file that all its shards share: what merging them would refuse hours later.

    source, network, nodes ──► first process ──► plan.json ──► every other process, which compares or stops

A plan fixes the source by a sha256 of each of its parts; the recipes of the network and its preprocessing;
the nodes with precision, type, views and calibration; and the BatchNorm statistics of a random network, as
safetensors in base64. It is JSON and holds no code.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bottleneck import __version__
from bottleneck.data.preprocess import Preprocess, views_from_json
from bottleneck.data.shards import plan_of
from bottleneck.data.source import Source
from bottleneck.errors import ArtifactError, BottleneckError, CacheError, FingerprintError, Note, first_line
from bottleneck.files import readable, require_no_url, write_whole
from bottleneck.heads.head_format import BACKBONE
from bottleneck.records import is_integer, is_text, require_fields, require_known_fields
from bottleneck.samples import MOST_SHARDS
from bottleneck.store.lock import CacheLock
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, differences, require_equal

FORMAT = "bottleneck-extraction-plan"
FORMAT_VERSION = 1
MOST_BYTES = 64 << 20
MOST_NODES = 4096
WAITED = 3600.0  # seconds for the process that makes the plan
SHA256 = re.compile("[0-9a-f]{64}")
DELETE = "Give each shard the same source and options; or delete the plan and its shards, and begin again."
FIELDS = {
    "format": lambda value: value == FORMAT,
    "format_version": lambda value: value == FORMAT_VERSION and is_integer(value),
    "created_with": is_text,
    "source_root": is_text,
    "images": lambda value: is_integer(value) and value >= 0,
    "samples": lambda value: is_integer(value) and value >= 0,
    "shards": lambda value: value is None or (is_integer(value) and 1 <= value <= MOST_SHARDS),
    "parts": lambda value: isinstance(value, dict) and all(map(_is_sha256, value.values())),
    "backbone": lambda value: isinstance(value, dict) and "name" in value,
    "preprocess": lambda value: isinstance(value, dict),
    "nodes": lambda value: isinstance(value, list) and 0 < len(value) <= MOST_NODES,
    "statistics": lambda value: value is None or is_text(value),
}


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


@dataclass(frozen=True)
class ExtractionPlan:
    """What the processes that extract one source agree on.

    source_root : folder or URL to which the keys are relative.
    images, samples : their numbers in the whole source.
    shards : the number of shards, or None where the plan was made without any.
    parts : sha256 of each part of the whole source (`data.shards.plan_of`).
    spec, nodes : of every shard's cache.
    statistics : BatchNorm's, by name, of a random network; empty otherwise.
    """

    source_root: str
    images: int
    samples: int
    shards: int | None
    parts: Mapping[str, str]
    spec: CacheSpec
    nodes: tuple[NodeSpec, ...]
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(
        source: Source, spec: CacheSpec, nodes: tuple[NodeSpec, ...], statistics: Mapping[str, np.ndarray]
    ) -> ExtractionPlan:
        """Return the plan of a source, which may be a shard of it, with the recipe of its extraction."""
        images, samples = source.whole
        shard = source.samples.shard
        root = Origin(spec, source.root).source_root
        of = None if shard is None else shard.of
        return ExtractionPlan(root, images, samples, of, _parts(source), spec, nodes, statistics)

    def require_source(self, source: Source, file: str) -> None:
        """Raise FingerprintError where `source` is no part of the planned one; it names what differs."""
        ours = {"source_root": self.source_root, **self.parts}
        theirs = {"source_root": Origin(self.spec, source.root).source_root, **_parts(source)}
        shard = source.samples.shard
        counts = [*zip(("images", "samples"), (self.images, self.samples), source.whole, strict=True)]
        if shard is not None and self.shards is not None:
            ours["shards"], theirs["shards"] = str(self.shards), str(shard.of)
            counts.append(("shards", self.shards, shard.of))
        fields = differences(ours, theirs)
        if not fields:
            return
        shown = {name: f"{name} ({a} in the plan, {b} now)" for name, a, b in counts if a != b}
        raise FingerprintError(
            f"{source.location} is not the source of the plan {file}; what differs: "
            f"{', '.join(shown.get(name, name) for name in fields)}.",
            DELETE,
            fields=tuple(fields),
        )

    def require_cache(self, cache: FeatureCache, file: str) -> None:
        """Raise FingerprintError where an existing cache has another recipe than the plan."""
        where, hint = f"The plan {file}, beside {cache.path},", "Give another cache with -o, or another plan."
        require_equal(self.spec.to_json(), cache.spec.to_json(), where, hint)
        common = [node for node in self.nodes if node.name in cache.nodes]
        require_equal(
            {node.name: node.recipe() for node in common},
            {node.name: cache.nodes[node.name].recipe() for node in common},
            where,
            hint,
        )

    def require_nodes(self, names: list[str], file: str) -> None:
        """Raise CacheError where a run asks for other nodes than the planned ones."""
        planned = [node.name for node in self.nodes]
        if set(names) != set(planned):
            raise CacheError(
                f"The plan {file} is of {', '.join(planned)}; this run asks for {', '.join(names)}.",
                "Leave --node out, or make another plan.",
            )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        packed = base64.b64encode(save(dict(self.statistics))).decode() if self.statistics else None
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_with": f"bottleneck-features {__version__}",
            "source_root": self.source_root,
            "images": self.images,
            "samples": self.samples,
            "shards": self.shards,
            "parts": dict(self.parts),
            **self.spec.to_json(),
            "nodes": [node.to_json() for node in self.nodes],
            "statistics": packed,
        }

    @staticmethod
    def from_json(record: Any) -> ExtractionPlan:
        """Return the plan that `to_json` described. Raises BottleneckError where a field is not as it was."""
        require_fields(record, FIELDS, "The record")
        require_known_fields(record["backbone"], BACKBONE, "Its network")
        Preprocess.from_json(record["preprocess"])
        nodes = tuple(NodeSpec.from_json(node) for node in record["nodes"])
        for node in nodes:
            if node.views is not None:
                views_from_json(node.views)
        if len({node.name for node in nodes}) < len(nodes):
            raise CacheError("It names a node twice.")
        try:
            packed = base64.b64decode(record["statistics"] or "", validate=True)
            statistics = load(packed) if packed else {}
        except (binascii.Error, SafetensorError) as error:
            raise ArtifactError(f"Its statistics cannot be read ({first_line(error)}).") from None
        if bool(record["backbone"].get("calibrated")) != bool(statistics):
            raise ArtifactError("It has statistics of a network that needs none, or lacks them.")
        return ExtractionPlan(
            source_root=record["source_root"],
            images=record["images"],
            samples=record["samples"],
            shards=record["shards"],
            parts=record["parts"],
            spec=CacheSpec(record["backbone"], record["preprocess"]),
            nodes=nodes,
            statistics=statistics,
        )


def _parts(source: Source) -> Mapping[str, str]:
    """Return the digests of the whole source, of which `source` may be a shard."""
    shard = source.samples.shard
    return plan_of(source.images, source.samples) if shard is None else shard.plan


def read_plan(file: str) -> ExtractionPlan | None:
    """Return the plan in a file; None where there is no file.

    Raises ArtifactError where it cannot be read or is none.
    """
    try:
        size = Path(file).stat().st_size
        if size > MOST_BYTES:
            raise _refused(file, f"it has {readable(size)}, a plan has at most {readable(MOST_BYTES)}")
        return ExtractionPlan.from_json(json.loads(Path(file).read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(file, error.strerror or first_line(error)) from None
    except (ValueError, RecursionError, TypeError) as error:
        raise _refused(file, f"it is not the JSON of a plan ({first_line(error)})") from None
    except BottleneckError as error:
        raise _refused(file, error.message.rstrip(".")) from None


def _refused(file: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"The plan {file} cannot be used: {what}.", "Give another --plan-file, or a new name to make one."
    )


@contextmanager
def plan_for(file: str, source: Source) -> Iterator[ExtractionPlan | None]:
    """Yield the plan in `file`, which `source` agrees with; None where the block has to write it.

    Of several processes that start at the same time, one makes the plan and the others wait for it.
    """
    require_no_url(Path(file))
    plan = read_plan(file)
    with ExitStack() as stack:
        if plan is None:
            stack.enter_context(CacheLock(Path(file), WAITED))
            plan = read_plan(file)
        if plan is not None:
            stack.close()
            plan.require_source(source, file)
        yield plan


def write_plan(file: str, plan: ExtractionPlan) -> Note:
    """Write a plan that no file has yet. Returns a note that says so."""
    write_whole(Path(file), json.dumps(plan.to_json(), indent=1).encode())
    text = f"The plan is written to {file}. Give it to every shard with --plan-file."
    return Note("plan-written", text, details={"plan": file, "shards": plan.shards})


def kept_note(file: str, plan: ExtractionPlan) -> Note:
    """Return a note that a run keeps to a plan."""
    precision = ", ".join(sorted({node.precision for node in plan.nodes}))
    text = f"Source, network, nodes and precision ({precision}) are those of the plan {file}."
    return Note("plan-kept", text, details={"plan": file, "precision": precision})
