"""What the driver of an extraction on Ray sends to its workers, and what they return; all can be pickled.

Shapes: B images of a batch, H × W pixels, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import bottleneck
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import LoadedImage
from bottleneck.data.preprocess import Preprocess, Views
from bottleneck.data.source import Source
from bottleneck.data.storage import LocalFiles, RemoteFiles, TarFiles
from bottleneck.engines.onnx_graph import StoredGraph
from bottleneck.errors import Note
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.pipeline import Batch
from bottleneck.files import FileStat
from bottleneck.versions import package_version

DECODERS = ("Pillow", "simplejpeg")  # packages that decide what pixels an image has


@dataclass(frozen=True)
class Part:
    """Images of one batch, and what the driver knows of where they are.

    indices : of the keys among those of the run.
    stats : of the files as the driver sees them, by key; the worker asks for those that are missing.
    members : of tar shards, by key (`storage.TarFiles`); empty for other sources.
    """

    indices: tuple[int, ...]
    keys: tuple[str, ...]
    stats: Mapping[str, FileStat] = field(default_factory=dict)
    members: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)

    def singles(self) -> list[Part]:
        """Return a part for each of the images."""
        return [
            replace(self, indices=(index,), keys=(key,))
            for index, key in zip(self.indices, self.keys, strict=True)
        ]


@dataclass(frozen=True)
class EngineOf:
    """An engine of the driver: its nodes, sorted, and what decides their rows.

    made_with : sorted nodes of its graph (`Trunk.made_with`).
    """

    nodes: tuple[str, ...]
    name: str
    precision: str
    calibration: dict[str, Any] | None
    made_with: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to do the driver's work; it can be pickled.

    network : recipe of the network. options, statistics : to load it (`registry.load_from_recipe`).
    config : how the driver runs it. engines : those of the driver, which leave no choice.
    graphs : of the driver's engines, by their keys in `GraphCache`.
    example : uint8 (B, H, W, C), images on which engines are compared with eager float32.
    source : where images are read, without its samples (`portable`).
    probe : images that every worker computes first. digests, rows : theirs, one array (B, …) per node.
    versions : of the packages that decide pixels and rows, by name.
    libraries : packages of the driver's engines; that of workers with GPUs is torch.
    allowed : what the user allows images to name (`untrusted.allow`).
    """

    network: dict[str, Any]
    options: LoadOptions
    statistics: Mapping[str, np.ndarray] | None
    preprocess: Preprocess
    config: EngineConfig
    engines: tuple[EngineOf, ...]
    graphs: tuple[tuple[tuple[str, ...], StoredGraph], ...]
    example: np.ndarray
    nodes: tuple[str, ...]
    views: Views | None
    source: Source
    probe: Part
    digests: tuple[bytes, ...]
    rows: tuple[np.ndarray, ...]
    versions: Mapping[str, str]
    libraries: tuple[str, ...]
    allowed: tuple[bool, bool]


@dataclass(frozen=True)
class Done:
    """What a worker made of a part.

    items : batches, and images without rows. spent : seconds by stage. notes : of its engines.
    requests : what the worker's `Retrier` counted since the last part.
    """

    items: list[Batch | LoadedImage]
    spent: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    requests: tuple[Counter[str], Counter[str]] | None = None


def portable(source: Source) -> Source:
    """Return a source without samples, from which other processes read the keys of its parts."""
    files = source.files
    light = TarFiles(files.shards, {}) if isinstance(files, TarFiles) else files
    return replace(source.take(np.zeros(0, np.int64)), absent={}, notes=(), cells={}, files=light)


def part_of(source: Source, indices: Sequence[int], keys: Sequence[str]) -> Part:
    """Return the part of `source` with some of its keys, whose indices in the run are given.

    The stat of a file is the driver's where it costs no request: other hosts may number their files
    otherwise, and the next run compares with the driver's.
    """
    files = source.files
    members = {key: files.members[key] for key in keys} if isinstance(files, TarFiles) else {}
    at = files.shards if isinstance(files, TarFiles) else files
    stats = {}
    for key in keys:
        name = members[key][0] if members else key
        listed = source.kept is None and isinstance(at, RemoteFiles) and at.path(name) in at.listing
        if "://" not in key and (isinstance(at, LocalFiles) or listed):
            try:
                stats[key] = source.stat(key)
            except Exception:  # of any library; the worker finds the reason
                continue
    return Part(tuple(indices), tuple(keys), stats, members)


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages by name; "none" where one is not installed."""
    found = {name: package_version(name) or "none" for name in names}
    return found | ({"bottleneck": bottleneck.__version__} if "bottleneck" in found else {})
