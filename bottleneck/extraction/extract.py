"""Extract features: run images through a frozen network and store the rows in a cache.

    flags, existing cache ──► plan what is missing ──► stream images through the engine ──► commit rows
    ──► one rename

A run with nothing to compute needs neither the backbone nor torch.

Shapes: I images, B images of a batch, V views.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from bottleneck.data.class_names import lost_classes
from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import load_images
from bottleneck.data.manifest import NONE_READ
from bottleneck.data.preprocess import views_from_json
from bottleneck.data.source import Source, read_source
from bottleneck.data.untrusted import remember_root
from bottleneck.errors import CacheError, ImageError, Note, counted, distinct, refuse_strict
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.pipeline import Batch, Trunk, measures_of, without_unstorable
from bottleneck.extraction.prepare import Extraction, prepare
from bottleneck.extraction.settings import cache_path, shared_views
from bottleneck.files import UNKNOWN_STAT, FileStat, write_whole
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.remote.path import RemotePath
from bottleneck.store.layout import statistics_path
from bottleneck.store.plan import Plan, Work, plan_run
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import Origin
from bottleneck.store.staging import Place, staged, staging_folder
from bottleneck.store.state import CacheState
from bottleneck.store.writer import CacheWriter
from bottleneck.threads import thread_budget


@dataclass(frozen=True)
class ExtractResult:
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

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck extract --json`."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}

    def require_rows(self) -> None:
        """Raise CacheError if no image gave a row, so that nothing can follow."""
        if not self.images:
            with FeatureCache(self.cache) as cache:
                cache.require_rows()


@dataclass(frozen=True)
class Survey:
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

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck extract --dry-run --json`."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}


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
    source, path, config = extraction.source, extraction.path, extraction.config
    trunk, startup = extraction.trunk, extraction.trunk.startup_seconds
    started = time.perf_counter()
    with CacheWriter(
        path,
        extraction.spec,
        extraction.nodes,
        source.root,
        source=source.location,
        moved=extraction.moved is not None,
        committed=place.upload,
    ) as writer:
        _write_statistics(extraction)
        for key, reason in source.absent.items():
            writer.fail(key, reason, passing=True)
        plan = writer.plan(
            *keys_and_stats(source, writer.is_new), reread=config.reread, measure=config.measure
        )
        refuse_strict([*extraction.notes, *plan.notes], strict, reporter.tell)
        _refuse_limit(source, plan, path)
        kept: list[str] = []
        for work in plan.work:
            kept += _compute(work, extraction, writer, reporter)
        summary = writer.finish(source.samples, consolidate=not config.keep_parts)
    place.finish()
    remember_root(source.root, place.shown)
    seconds = time.perf_counter() - started - (trunk.startup_seconds - startup)
    targets = (source.samples.targets, summary.samples.targets)
    lost = lost_classes(*targets, "classes-without-samples", "the cache", NONE_READ)
    return ExtractResult(
        cache=str(place.shown),
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
        notes=distinct(
            [
                *source.notes,
                *trunk.notes,
                *place.told(
                    [
                        *filter(None, [extraction.moved]),
                        *extraction.notes,
                        *plan.notes,
                        *_mended_note(plan.notes, summary.computed, trunk.engine_name),
                        *writer.notes,
                    ]
                ),
                *lost,
                *_kept_note(kept),
                *_unused_note(config, trunk),
                *source.reading_notes(),
            ]
        ),
    )


def _prepared(config: ExtractConfig, source: Source, path: Path, reporter: Reporter) -> Extraction:
    """Prepare an extraction, whose trunk runs on a Ray cluster where the user wants it."""
    if config.ray is None:
        return prepare(config, source, path)
    from bottleneck.extraction.ray_trunk import RayTrunk, for_workers

    extraction = prepare(for_workers(config, source), source, path)
    return replace(extraction, trunk=RayTrunk.of(extraction, reporter))


def _unused_note(config: ExtractConfig, trunk: Trunk) -> Iterator[Note]:
    """Yield a note where a Ray cluster was asked for and there was nothing to compute on it."""
    if config.ray is not None and not any(note.code == "ray-workers" for note in trunk.notes):
        yield Note("ray-not-used", "No image needs the network, so the Ray cluster was not used.")


def _mended_note(notes: Sequence[Note], computed: int, engine: str | None) -> Iterator[Note]:
    """Yield a note where damaged rows were computed again, perhaps by another engine than the others."""
    if computed and any(note.code in ("rows-damaged", "part-damaged") for note in notes):
        text = (
            f"The damaged rows were computed again with {engine}, perhaps not the engine of the other rows; "
            "engines agree within the bound of their precision."
        )
        yield Note("rows-mended", text, details={"engine": engine, "computed": computed})


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
        _refuse_limit(source, plan, path)
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


def _refuse_limit(source: Source, plan: Plan, path: Path) -> None:
    """Raise CacheError where a limit leaves the cache with fewer images than it has."""
    for note in plan.notes:
        few = note.code == "rows-removed" and len(source.images) < note.details["before"]
        if few and source.limit is not None:
            raise CacheError(
                f"With --limit {source.limit}, the rows of {note.details['removed']} of "
                f"{counted(note.details['before'], 'image')} would be removed from {path}.",
                "Leave --limit out, or give another file with -o.",
            )


def keys_and_stats(source: Source, is_new: bool) -> tuple[tuple[str, ...], list[FileStat]]:
    """Return the keys of all inputs, those known to be absent last, with the file of each.

    is_new : the cache knows no image, so that no file can be unchanged, and none is asked for.
    """
    stats = [UNKNOWN_STAT for _ in source.images] if is_new else source.stats(source.images)
    return (*source.images, *source.absent), [*stats, *(UNKNOWN_STAT for _ in source.absent)]


def _write_statistics(extraction: Extraction) -> None:
    """Write the BatchNorm statistics of a new random network beside the cache, before its first row."""
    if extraction.statistics:
        write_whole(statistics_path(extraction.path), save(dict(extraction.statistics)))


def _compute(work: Work, extraction: Extraction, writer: CacheWriter, reporter: Reporter) -> list[str]:
    """Stream the images of one work group through the engine into the writer.

    Returns "key: reason" of the images that cannot be read at present and keep their rows of an earlier run.
    """
    kept: list[str] = []
    if not work.nodes:
        return _measured(work, extraction, writer, reporter)
    source, names = extraction.source, list(work.nodes)
    keys = [source.images[i] for i in work.images]
    views = shared_views((writer.nodes[name] for name in names), extraction.path)
    recipe = views_from_json(views) if views else None
    known = writer.known(names)
    items = extraction.trunk.stream(source, keys, names, known=known, views=recipe)
    with closing(items) as stream, reporter.step("Extracting", total=len(keys), unit="images") as advance:
        for item in without_unstorable(stream, [writer.nodes[name] for name in names]):
            if isinstance(item, Batch):
                _commit(item, names, writer, extraction.trunk)
                advance(len(item.images))
                continue
            if item.error is None:
                assert item.digest is not None  # the bytes were read
                writer.take_over(item.key, item.digest, item.stat)
            elif item.passing and writer.has_rows(item.key):
                kept.append(f"{item.key}: {item.error}")
            elif extraction.config.on_error == "fail":
                raise ImageError(f"{item.key}: {item.error}", "Use --on-error skip to list it and go on.")
            else:
                writer.fail(item.key, item.error, item.digest, item.stat, passing=item.passing)
            advance(1)
    return kept


def _kept_note(kept: Sequence[str]) -> list[Note]:
    """Return a note on images that cannot be read at present, if there are any."""
    if not kept:
        return []
    return [
        Note(
            "rows-kept-unread",
            f"{counted(len(kept), 'image')} cannot be read at present, so rows of an earlier run are kept; "
            f"the first is {kept[0]}. Run extract again when that has changed.",
            details={"kept": len(kept)},
        )
    ]


def _commit(batch: Batch, names: Sequence[str], writer: CacheWriter, trunk: Trunk) -> None:
    writer.add(
        [(image.key, image.digest, image.stat) for image in batch.images if image.digest is not None],
        dict(zip(names, batch.features, strict=True)),
        dict(zip(names, batch.views, strict=True)) if batch.views else {},
        measures_of(batch.images, trunk.preprocess) if batch.measures is None else batch.measures,
        trunk.engines_of(names),
    )


def _measured(work: Work, extraction: Extraction, writer: CacheWriter, reporter: Reporter) -> list[str]:
    """Measure the pixels of images that have their rows; the network is not run. Returns as `_compute`."""
    source, preprocess = extraction.source, extraction.trunk.preprocess
    keys, engine = [source.images[i] for i in work.images], extraction.trunk.config
    workers = thread_budget(engine.workers, engine.device).decode
    kept = []
    with reporter.step("Measuring", total=len(keys), unit="images") as advance:
        for image in load_images(source, keys, preprocess, workers=workers):
            if image.error is not None:
                kept.append(f"{image.key}: {image.error}")
            elif image.pixels is not None and image.digest is not None:
                rows = [(image.key, image.digest, image.stat)]
                writer.add(rows, {}, measures=measures_of([image], preprocess))
            advance(1)
    return kept
