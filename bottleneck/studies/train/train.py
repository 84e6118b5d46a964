"""Train the best classifier that images allow: the public functions. `route` has the method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.names import DEFAULT_BACKBONE
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train.plan import TrainPlan, plan
from bottleneck.studies.train.request import Request
from bottleneck.studies.train.result import TrainResult
from bottleneck.studies.train.route import run


def train(
    source: str | Path | Source,
    output: str | Path | None = None,
    *,
    backbone: str | Sequence[str] = (),
    target: str | None = TrainConfig.target,
    minutes: float | None = TrainConfig.minutes,
    finetune: str = TrainConfig.finetune,
    cache: str | Path | None = None,
    cv: int = TrainConfig.cv,
    weights: str | None = ExtractConfig.weights,
    image_size: int | None = ExtractConfig.image_size,
    crop: float | str | None = ExtractConfig.crop,
    decoding: str | None = ExtractConfig.decoding,
    in_channels: int | None = ExtractConfig.in_channels,
    depth: int | None = ExtractConfig.depth,
    dtype: str | None = ExtractConfig.dtype,
    flip: bool = ExtractConfig.flip,
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
    cache_images: str | None = ReadConfig.cache_images,
    seed: int = TrainConfig.seed,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Train the best classifier that the images allow, and write it as one model file.

    The choice is by the rule of `trials.evidence`: cross-validation on train and val are pooled, and a
    candidate replaces a simpler one only if it is better by more than the noise of paired samples. Test is
    read once, by the model that is written. `budget` says what is left out first where `minutes` are short.

    Parameters
    ----------
    source : path, URL or Source
        A folder of images, a manifest, shards, or an already read `Source`.
    output : path, optional
        The model; `models/SOURCE.safetensors` below the current folder by default.
    backbone : str or sequence of str
        Networks to compare, the preferred one first; `names.DEFAULT_BACKBONE` by default.
    cache : path, optional
        Feature cache (.h5) of the one network, or a folder for the caches of several. By default they are in
        the folder `MODEL.work` beside the model.
    target, minutes, finetune, cv, seed
        As in `TrainConfig`.
    weights, image_size, crop, decoding, in_channels, depth, dtype, trust_code
        As in `ExtractConfig`.
    flip : bool
        Extract the mirror image of each image too, which takes twice the time, and average both where the
        evidence gains. A cache that has mirrored views is used so without it.
    engine, precision, device, batch_size, workers, force
        As in `EngineConfig`.
    image_columns, label_columns, split_column, group_column, sample_column, covariate_columns, classes, \
regression, label_separator, val_fraction, test_fraction, limit, cache_images
        As in `ReadConfig`.
    strict
        Refuse decisions that change what is learnt or measured.

    Raises
    ------
    SourceError, BackboneError, EngineError, CacheError
        As `extract` does.
    FitError
        The labels cannot be learnt: none, one class, too few samples.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter() if reporter.started is None else reporter.started
    config = config_from(TrainConfig, locals())
    extraction = config_from(ExtractConfig, locals(), backbone=None)
    reading = config_from(ReadConfig, locals())
    request = Request(
        read_source(source, reading), output, _names(backbone), config, extraction, cache, strict, reporter
    )
    return run(request, started)


def plan_training(
    source: str | Path | Source,
    output: str | Path | None = None,
    *,
    backbone: str | Sequence[str] = (),
    cache: str | Path | None = None,
    config: TrainConfig | None = None,
    extraction: ExtractConfig | None = None,
    reading: ReadConfig | None = None,
    strict: bool = False,
) -> TrainPlan:
    """Return what `train` with the same options would do and cost. Nothing is written.

    Raises what `train` would raise before its first image.
    """
    request = Request(
        read_source(source, reading),
        output,
        _names(backbone),
        config or TrainConfig(),
        extraction or ExtractConfig(),
        cache,
        strict,
        SILENT,
    )
    return plan(request)


def _names(backbone: str | Sequence[str]) -> tuple[str, ...]:
    names = (backbone,) if isinstance(backbone, str) else tuple(dict.fromkeys(backbone))
    return names or (DEFAULT_BACKBONE,)
