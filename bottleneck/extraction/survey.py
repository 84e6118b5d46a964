"""What an extraction would do: images to read, bytes to write. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bottleneck.data.config import ReadConfig
from bottleneck.data.source import Source, read_source
from bottleneck.errors import Note, refuse_strict
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.extract import default_cache, keys_and_stats
from bottleneck.extraction.prepare import prepare
from bottleneck.store.plan import plan_run
from bottleneck.store.spec import Origin
from bottleneck.store.state import CacheState


@dataclass(frozen=True)
class Survey:
    """What `extract` would do.

    to_read : images to be read; a rename or a copy among them computes nothing. bytes_to_write : at most.
    data : what was understood of the source (`data_sheet.data_sheet`).
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


def survey(
    source: str | Path | Source,
    cache: str | Path | None = None,
    *,
    backbone: str | None = ExtractConfig.backbone,
    weights: str | None = ExtractConfig.weights,
    nodes: Sequence[str] = ExtractConfig.nodes,
    pool: str | None = ExtractConfig.pool,
    dtype: str | None = ExtractConfig.dtype,
    views: int = ExtractConfig.views,
    image_size: int | None = ExtractConfig.image_size,
    crop: float | str | None = ExtractConfig.crop,
    in_channels: int | None = ExtractConfig.in_channels,
    depth: int | None = ExtractConfig.depth,
    seed: int | None = ExtractConfig.seed,
    on_error: str = ExtractConfig.on_error,
    reread: bool = ExtractConfig.reread,
    source_moved: bool = ExtractConfig.source_moved,
    keep_parts: bool = ExtractConfig.keep_parts,
    trust_code: bool = ExtractConfig.trust_code,
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
    strict: bool = False,
) -> Survey:
    """Return what `extract` with the same arguments would do, without writing a file or taking a lock.

    Raises what `extract` would raise before its first image.
    """
    config = ExtractConfig(
        backbone=backbone,
        weights=weights,
        nodes=tuple(nodes),
        pool=pool,
        dtype=dtype,
        views=views,
        image_size=image_size,
        crop=crop,
        in_channels=in_channels,
        depth=depth,
        seed=seed,
        on_error=on_error,
        reread=reread,
        source_moved=source_moved,
        keep_parts=keep_parts,
        trust_code=trust_code,
        engine=EngineConfig(
            engine=engine,
            precision=precision,
            device=device,
            batch_size=batch_size,
            workers=workers,
            force=force,
        ),
    )
    reading = ReadConfig(
        image_columns=tuple(image_columns),
        label_columns=tuple(label_columns),
        split_column=split_column,
        group_column=group_column,
        sample_column=sample_column,
        covariate_columns=tuple(covariate_columns),
        classes=tuple(classes),
        regression=tuple(regression),
        label_separator=label_separator,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed or 0,
        limit=limit,
    )
    source = read_source(source, reading)
    refuse_strict(source.notes, strict)
    path = Path(cache) if cache is not None else default_cache(source, config)
    extraction = prepare(config, source, path)
    origin, moved = Origin(extraction.spec, source.root, source.location), extraction.moved
    with CacheState(path, origin, extraction.nodes, moved=moved is not None) as state:
        plan = plan_run(state, *keys_and_stats(source), given_up=source.absent, reread=reread)
        plan.require_space(path.parent)
        return Survey(
            cache=str(path),
            images=len(source.images),
            samples=len(source.samples),
            to_read=plan.to_read,
            reused=plan.reused,
            failed=plan.failed,
            ignored=source.ignored,
            bytes_to_write=plan.feature_bytes,
            nodes={name: node.shape for name, node in state.nodes.items()},
            data=source_sheet(source, source.samples, source.absent),
            notes=[*source.notes, *filter(None, [moved]), *plan.notes],
        )
