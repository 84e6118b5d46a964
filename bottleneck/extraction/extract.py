"""Extract features: run images through a frozen network and store the rows in a cache.

    flags, existing cache ──► plan what is missing ──► stream images through the engine ──► commit rows
    ──► one rename

A run with nothing to compute needs neither the backbone nor torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from bottleneck.data.class_names import lost_classes
from bottleneck.data.config import ReadConfig
from bottleneck.data.manifest import NONE_READ
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.data.untrusted import remember_root
from bottleneck.errors import Note, counted, distinct, refuse_strict
from bottleneck.extraction.compute import compute
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.existing import keys_and_stats, refuse_limit
from bottleneck.extraction.prepare import Extraction, prepare
from bottleneck.extraction.settings import cache_path
from bottleneck.files import write_whole
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.store.layout import statistics_path
from bottleneck.store.plan import Plan
from bottleneck.store.reader import FeatureCache
from bottleneck.store.staging import Place, staged
from bottleneck.store.writer import CacheWriter, Summary


@dataclass(frozen=True)
class ExtractResult(Result):
    """What an extraction did.

    engine : of the first of `engines`; None where nothing had to be computed. engines : those that ran, each
        {"engine", "precision", "nodes"}. precisions : of the rows in the cache, by node.
    nodes : shape of one row by name. views : recipe of each node's views; None where it has none.
    spent : seconds by stage. "read" and "decode" are summed over their threads; "network" is the time in
        which it ran; "write" is that of the writing thread and of the finished file.
    data : what was understood of the source (`data_sheet.data_sheet`).
    notes : what was decided for the user.
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
    views: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)
    precisions: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def require_rows(self) -> None:
        """Raise CacheError if no image gave a row, so that nothing can follow."""
        if not self.images:
            with FeatureCache(self.cache) as cache:
                cache.require_rows()


def extract(
    source: str | Path | Source,
    cache: str | Path | None = None,
    *,
    backbone: str | None = ExtractConfig.backbone,
    weights: str | None = ExtractConfig.weights,
    nodes: Sequence[str] = ExtractConfig.nodes,
    pool: str | None = ExtractConfig.pool,
    dtype: str | None = ExtractConfig.dtype,
    views: int = ExtractConfig.views,
    flip: bool = ExtractConfig.flip,
    image_size: int | None = ExtractConfig.image_size,
    crop: float | str | None = ExtractConfig.crop,
    decoding: str | None = ExtractConfig.decoding,
    in_channels: int | None = ExtractConfig.in_channels,
    depth: int | None = ExtractConfig.depth,
    seed: int | None = ExtractConfig.seed,
    on_error: str = ExtractConfig.on_error,
    reread: bool = ExtractConfig.reread,
    measure: bool = ExtractConfig.measure,
    source_moved: bool = ExtractConfig.source_moved,
    keep_parts: bool = ExtractConfig.keep_parts,
    trust_code: bool = ExtractConfig.trust_code,
    plan_file: str | None = ExtractConfig.plan_file,
    ray: str | None = ExtractConfig.ray,
    ray_workers: int | None = ExtractConfig.ray_workers,
    gpus_per_worker: float = ExtractConfig.gpus_per_worker,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    val_fraction: float = ReadConfig.val_fraction,
    test_fraction: float = ReadConfig.test_fraction,
    limit: int | None = ReadConfig.limit,
    cache_images: str | None = ReadConfig.cache_images,
    shard: str | None = ReadConfig.shard,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> ExtractResult:
    """Run the backbone once over the images of `source` and store its features in `cache`.

    Parameters
    ----------
    source : path, URL or Source
        A folder of images, a manifest, shards, or an already read `Source`.
    cache : path, optional
        `cache/SOURCE--BACKBONE.h5` below the current folder by default; SOURCE is the source's whole name.
    backbone, weights, nodes, pool, dtype, views, flip, image_size, crop, decoding, in_channels, depth, \
seed, on_error, reread, measure, source_moved, keep_parts, trust_code, plan_file, ray, ray_workers, \
gpus_per_worker
        As in `ExtractConfig`. `seed` also decides which samples are set aside.
    engine, precision, device, batch_size, workers, force
        As in `EngineConfig`.
    image_columns, label_columns, split_column, group_column, sample_column, covariate_columns, \
val_fraction, test_fraction, limit, cache_images, shard
        As in `ReadConfig`. A shard is written to a file of its own, `NAME--shard-I-of-N.h5`.
    strict
        Refuse a decision on the source or on rows of the cache that changes what is learnt or measured.

    Raises
    ------
    SourceError, BackboneError, EngineError
    FingerprintError
        The cache was made with another backbone, preprocessing or dtype, or from other images.
    CacheError
        The cache is damaged, locked by another run, or the disk is full.
    ClusterError
        The Ray cluster cannot be reached, or none of its workers can do the work.
    """
    config = config_from(ExtractConfig, locals())
    opened = read_source(source, config_from(ReadConfig, locals(), seed=seed or 0))
    if opened.kept is not None and reread:
        opened.kept.anew = True
    refuse_strict(opened.notes, strict, reporter.tell)
    return run_extraction(opened, cache, config, reporter, strict)


def run_extraction(
    source: Source,
    cache: str | Path | None,
    config: ExtractConfig,
    reporter: Reporter = SILENT,
    strict: bool = False,
) -> ExtractResult:
    """Extract `source` into `cache`, as `extract` does with the fields of `config`."""
    with staged(cache_path(source, cache, config), reporter.tell) as place:
        return run_prepared(_prepared(config, source, place.path, reporter), reporter, strict, place)


def run_prepared(
    extraction: Extraction, reporter: Reporter = SILENT, strict: bool = False, place: Place | None = None
) -> ExtractResult:
    """Extract what was prepared (`prepare.prepare`), as `extract` does. place : of a cache at a URL."""
    place = place or Place(extraction.path)
    source, trunk = extraction.source, extraction.trunk
    started, startup = time.perf_counter(), trunk.startup_seconds
    with CacheWriter(
        extraction.path,
        extraction.spec,
        extraction.nodes,
        source.root,
        source=source.location,
        moved=extraction.moved is not None,
        committed=place.upload,
    ) as writer:
        plan = _planned(extraction, writer, strict, reporter)
        kept = [text for work in plan.work for text in compute(work, extraction, writer, reporter)]
        summary = writer.finish(source.samples, consolidate=not extraction.config.keep_parts)
    place.finish()
    remember_root(source.root, place.shown)
    seconds = time.perf_counter() - started - (trunk.startup_seconds - startup)
    mended = _mended_note(plan.notes, summary.computed, trunk.engine_name)
    of_cache = [*filter(None, [extraction.moved]), *extraction.notes, *plan.notes, *mended, *writer.notes]
    notes = [*source.notes, *trunk.notes, *place.told(of_cache), *_notes(extraction, summary, kept)]
    return _result(extraction, summary, str(place.shown), seconds, distinct(notes))


def _planned(extraction: Extraction, writer: CacheWriter, strict: bool, reporter: Reporter) -> Plan:
    """Return what is missing, before its first row is computed. Raises as `extract` does."""
    source, config = extraction.source, extraction.config
    if extraction.statistics:  # BatchNorm's, of a new random network
        write_whole(statistics_path(extraction.path), save(dict(extraction.statistics)))
    for key, reason in source.absent.items():
        writer.fail(key, reason, passing=True)
    keys = keys_and_stats(source, writer.is_new)
    plan = writer.plan(*keys, reread=config.reread, measure=config.measure)
    refuse_limit(source, plan, extraction.path)  # before a note tells that rows are removed
    refuse_strict([*extraction.notes, *plan.notes], strict, reporter.tell)
    return plan


def _result(
    extraction: Extraction, summary: Summary, cache: str, seconds: float, notes: list[Note]
) -> ExtractResult:
    source, trunk = extraction.source, extraction.trunk
    return ExtractResult(
        cache=cache,
        images=summary.images,
        samples=len(summary.samples),
        computed=summary.computed,
        reused=summary.reused,
        failed=summary.failed,
        removed=summary.removed,
        ignored=source.ignored,
        seconds=seconds,
        startup_seconds=trunk.startup_seconds,
        images_per_second=summary.computed / seconds,
        engine=trunk.engine_name,
        nodes={name: node.shape for name, node in summary.nodes.items()},
        spent={**trunk.spent, "write": summary.write_seconds},
        failures=summary.failures,
        views={name: node.views for name, node in summary.nodes.items()},
        engines=trunk.engines_used,
        precisions={name: node.precision for name, node in summary.nodes.items()},
        data=source_sheet(source, summary.samples, summary.failures),
        notes=notes,
    )


def _notes(extraction: Extraction, summary: Summary, kept: Sequence[str]) -> Iterator[Note]:
    """Yield what was decided on labels, images that cannot be read, a cluster and requests to a network."""
    source, trunk = extraction.source, extraction.trunk
    targets = (source.samples.targets, summary.samples.targets)
    yield from lost_classes(*targets, "classes-without-samples", "the cache", NONE_READ)
    if kept:
        text = (
            f"{counted(len(kept), 'image')} cannot be read at present, so rows of an earlier run are kept; "
            f"the first is {kept[0]}. Run extract again when that has changed."
        )
        yield Note("rows-kept-unread", text, details={"kept": len(kept)})
    if extraction.config.ray is not None and not any(note.code == "ray-workers" for note in trunk.notes):
        yield Note("ray-not-used", "No image needs the network, so the Ray cluster was not used.")
    yield from source.reading_notes()


def _prepared(config: ExtractConfig, source: Source, path: Path, reporter: Reporter) -> Extraction:
    """Prepare an extraction, whose trunk runs on a Ray cluster where the user wants it."""
    if config.ray is None:
        return prepare(config, source, path)
    from bottleneck.extraction.ray_trunk import RayTrunk, for_workers

    extraction = prepare(for_workers(config, source), source, path)
    return replace(extraction, trunk=RayTrunk.of(extraction, reporter))


def _mended_note(notes: Sequence[Note], computed: int, engine: str | None) -> Iterator[Note]:
    """Yield a note where damaged rows were computed again, perhaps by another engine than the others."""
    if computed and any(note.code in ("rows-damaged", "part-damaged") for note in notes):
        text = (
            f"The damaged rows were computed again with {engine}, perhaps not the engine of the other rows; "
            "engines agree within the bound of their precision."
        )
        yield Note("rows-mended", text, details={"engine": engine, "computed": computed})
