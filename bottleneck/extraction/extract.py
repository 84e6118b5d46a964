"""Images → frozen trunk → cache: the only place where images, backbone, engine and store meet.

    request: what is asked, what is there ──► plan what is missing ──► stream images through the engine
    ──► commit rows ──► one rename

A run with nothing to compute needs neither the backbone nor torch.

Shapes: I images, B images of a batch, V views.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bottleneck.data.augment import ViewRecipe
from bottleneck.data.source import Source, read_source, reading_options
from bottleneck.errors import ImageError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.pipeline import Batch
from bottleneck.extraction.settings import Request
from bottleneck.names import DEFAULT_BACKBONE
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.plan import Plan, Work
from bottleneck.store.reader import FeatureCache
from bottleneck.store.writer import CacheWriter

ENGINE_FIELDS = frozenset(field.name for field in fields(EngineConfig))


@dataclass(frozen=True)
class ExtractResult:
    """What a run did.

    nodes : shape of one row by name.
    spent : seconds by stage. Reading and decoding are summed over their threads; network is while it was
        busy, and write what the cache took beside it and at the end.
    """

    cache: str
    images: int
    samples: int
    computed: int
    reused: int
    failed: int
    removed: int
    ignored: int
    seconds: float
    startup_seconds: float
    images_per_second: float
    engine: str | None
    nodes: dict[str, tuple[int, ...]]
    spent: dict[str, float]
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck extract --json`."""
        return dict(vars(self))

    def require_rows(self) -> None:
        """Raise CacheError where not one image gave a row, so that nothing can follow."""
        if not self.images:
            with FeatureCache(self.cache) as cache:
                cache.require_rows()


def extract(
    source: str | Path | Source,
    cache: str | Path | None = None,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> ExtractResult:
    """Run the backbone once over the images of `source` and keep its features in `cache`.

    Parameters
    ----------
    source : path, URL or Source
        A folder of images, a manifest, shards, or an already read `Source`.
    cache : path, optional
        `cache/SOURCE--BACKBONE.h5` below the current folder by default.
    options
        Fields of `ExtractConfig` and of `EngineConfig`, and the keyword arguments of `read_source`.

    Returns
    -------
    ExtractResult

    Raises
    ------
    SourceError, BackboneError, EngineError
    FingerprintError
        The cache was made with another backbone, preprocessing, dtype or source root.
    CacheError
        The cache is damaged, locked by another run, or the disk is full.
    """
    source, config = _read_options(source, options)
    path = Path(cache) if cache is not None else default_cache(source, config)
    request = Request(config, source, path)
    startup = request.trunk.startup_seconds
    started = time.perf_counter()
    with CacheWriter(path, request.spec, request.nodes, source.root) as writer:
        for work in _plan(source, writer).work:
            _compute(work, request, writer, reporter)
        summary = writer.finish(source.samples, consolidate=not config.keep_parts)
    seconds = time.perf_counter() - started - (request.trunk.startup_seconds - startup)
    with FeatureCache(path) as written:
        return ExtractResult(
            cache=str(path),
            images=summary.images,
            samples=len(written.samples),
            computed=summary.computed,
            reused=summary.reused,
            failed=summary.failed,
            removed=summary.removed,
            ignored=source.ignored,
            seconds=seconds,
            startup_seconds=request.trunk.startup_seconds,
            images_per_second=summary.computed / seconds,
            engine=request.trunk.engine_name,
            nodes={name: node.shape for name, node in written.nodes.items()},
            spent={**request.trunk.spent, "write": summary.write_seconds},
            failures=dict(written.failures),
        )


@dataclass(frozen=True)
class Survey:
    """What `extract` would do.

    to_read : images to be read; a rename or a copy among them computes nothing. bytes_to_write : at most.
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

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck extract --dry-run --json`."""
        return dict(vars(self))


def survey(source: str | Path | Source, cache: str | Path | None = None, **options: Any) -> Survey:
    """Say what `extract` with the same arguments would do, writing nothing. Raises what it would raise."""
    source, config = _read_options(source, options)
    path = Path(cache) if cache is not None else default_cache(source, config)
    request = Request(config, source, path)
    with CacheWriter(path, request.spec, request.nodes, source.root) as writer:
        plan = _plan(source, writer)
        return Survey(
            cache=str(path),
            images=len(source.images),
            samples=len(source.samples),
            to_read=sum(len(work.images) for work in plan.work),
            reused=plan.reused,
            failed=plan.failed,
            ignored=source.ignored,
            bytes_to_write=sum(
                len(work.images) * writer.nodes[name].row_bytes for work in plan.work for name in work.nodes
            ),
            nodes={name: node.shape for name, node in writer.nodes.items()},
        )


def _read_options(source: str | Path | Source, options: dict[str, Any]) -> tuple[Source, ExtractConfig]:
    """Sort keyword arguments into those of the source, the engine and the extraction."""
    reading = reading_options(options, besides=("seed",))
    running = {name: options.pop(name) for name in ENGINE_FIELDS & options.keys()}
    config = ExtractConfig(**options, engine=EngineConfig(**running))
    return read_source(source, replace(reading, seed=config.seed or 0)), config


def default_cache(source: Source, config: ExtractConfig) -> Path:
    """`cache/SOURCE--BACKBONE.h5` below the current folder."""
    name = Path(source.root.rstrip("/")).stem or "images"
    backbone = re.sub(r"[^\w.-]+", "-", config.backbone or DEFAULT_BACKBONE)
    return Path("cache") / f"{name}--{backbone}.h5"


def _plan(source: Source, writer: CacheWriter) -> Plan:
    """What is missing. Inputs that are known to be absent are failures at once."""
    for key, reason in source.absent.items():
        writer.fail(key, reason)
    keys = (*source.images, *source.absent)
    return writer.plan(keys, [_stat(source, key) for key in keys])


def _compute(work: Work, request: Request, writer: CacheWriter, reporter: Reporter) -> None:
    """Stream the images of one work group through the engine into the writer."""
    keys = [request.source.images[i] for i in work.images]
    names = list(work.nodes)
    views = next((writer.nodes[name].views for name in names if writer.nodes[name].views), None)
    recipe = ViewRecipe.from_json(views) if views else None
    with reporter.step("Extracting", total=len(keys), unit="images") as advance:
        for item in request.trunk.stream(request.source, keys, names, known=work.known, views=recipe):
            if isinstance(item, Batch):
                _commit(item, names, writer)
                advance(len(item.images))
                continue
            if item.error is None:
                writer.take_over(item.key, item.digest, item.size, item.mtime_ns)
            elif request.config.on_error == "fail":
                raise ImageError(f"{item.key}: {item.error}", "Use --on-error skip to list it and go on.")
            else:
                writer.fail(item.key, item.error, item.digest, item.size, item.mtime_ns)
            advance(1)


def _commit(batch: Batch, names: Sequence[str], writer: CacheWriter) -> None:
    images = batch.images
    writer.add(
        [image.key for image in images],
        [image.digest for image in images],
        [image.size for image in images],
        [image.mtime_ns for image in images],
        dict(zip(names, batch.features, strict=True)),
        dict(zip(names, batch.views, strict=True)) if batch.views else {},
    )


def _stat(source: Source, key: str) -> tuple[int, int]:
    """(size in bytes, mtime in ns); (−1, −1) where there is no such file."""
    try:
        return source.stat(key) if key not in source.absent else (-1, -1)
    except (ImageError, OSError):
        return -1, -1
