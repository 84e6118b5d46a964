"""What `extract` would do, without writing a cache: `bottleneck extract --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.errors import Note, refuse_strict
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.existing import keys_and_stats, refuse_limit
from bottleneck.extraction.prepare import prepare
from bottleneck.extraction.settings import cache_path
from bottleneck.records import Result
from bottleneck.remote.path import RemotePath
from bottleneck.store.plan import plan_run
from bottleneck.store.spec import Origin
from bottleneck.store.staging import staging_folder
from bottleneck.store.state import CacheState


@dataclass(frozen=True)
class Survey(Result):
    """What `extract` would do.

    to_read : images to be read; a rename or a copy among them computes nothing. bytes_to_write : at most.
    samples, data : what was understood of the source (`data_sheet.data_sheet`), without images that are known
        to be broken.
    """

    cache: str
    images: int
    samples: int
    to_read: int
    reused: int
    failed: int
    ignored: int
    bytes_to_write: int
    nodes: dict[str, tuple[int, ...]]
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def survey(
    source: str | Path | Source,
    cache: str | Path | None = None,
    config: ExtractConfig | None = None,
    reading: ReadConfig | None = None,
    strict: bool = False,
) -> Survey:
    """Return what `extract` with the same options would do, without writing a cache or taking its lock.

    A plan file is written, if one is named that does not exist.

    Raises what `extract` would raise before its first image.
    """
    config = config or ExtractConfig()
    source = read_source(source, reading)
    refuse_strict(source.notes, strict)
    path = cache_path(source, cache, config)
    extraction = prepare(config, source, path)
    origin, moved = Origin(extraction.spec, source.root, source.location), extraction.moved
    with CacheState(path, origin, extraction.nodes, moved=moved is not None) as state:
        keys = keys_and_stats(source, is_new=not (state.records or state.failures))
        plan = plan_run(state, *keys, source.absent, reread=config.reread, measure=config.measure)
        refuse_limit(source, plan, path)
        refuse_strict([*extraction.notes, *plan.notes], strict)
        plan.require_space(staging_folder(path) if isinstance(path, RemotePath) else path.parent)
        again = {source.images[i] for work in plan.work for i in work.images}
        known = {key: state.failures[key].reason for key in source.images if key in state.failures}
        failures = {key: why for key, why in known.items() if key not in again} | dict(source.absent)
        broken = np.array([key in failures for key in (*source.images, *source.absent)], bool)
        samples = source.samples.take(np.flatnonzero(~broken[source.samples.image].any(axis=1)))
        return Survey(
            cache=str(path),
            images=len(source.images),
            samples=len(samples),
            to_read=plan.to_read,
            reused=plan.reused,
            failed=plan.failed,
            ignored=source.ignored,
            bytes_to_write=plan.feature_bytes,
            nodes={name: node.shape for name, node in state.nodes.items()},
            data=source_sheet(source, samples, failures),
            notes=[*source.notes, *filter(None, [moved]), *extraction.notes, *plan.notes],
        )
