"""Training from random weights, by the same loop: the baseline that transfer has to beat.

    images ──► decoded once ──► network with random weights ──► features, covariates ──► layers ──► logits

The small CNN has its own classifier (a hidden layer of 128); any other backbone gets one linear layer. Two
classes share one logit and binary cross-entropy.

Shapes: I images, S samples, M images per sample, P covariates, D inputs of the classifier.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.registry import load_backbone, new_classifier
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source, source_name
from bottleneck.errors import FitError, Note, counted, refuse_strict
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.scaled_decoding import both_decodings, unscaled_note
from bottleneck.files import require_file_name
from bottleneck.fitting.head_files import file_name
from bottleneck.heads.artifact import HeadArtifact, HeadDescription
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.trained_on import seen_before
from bottleneck.names import BOTTLENECK, SCALED, SMALL_CNN
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.samples import ArrayRows, RowReader, SampleTable
from bottleneck.store.spec import CacheSpec, fingerprint
from bottleneck.threads import thread_budget
from bottleneck.training.batches import batch_count
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import ScratchConfig
from bottleneck.training.inputs import LiveRows, PixelRows, decoded, unread_note
from bottleneck.training.job import Inputs, TrainingJob, training_device
from bottleneck.training.labelled_splits import LabelledSplits, labelled_splits
from bottleneck.training.network import TransferNetwork, folded
from bottleneck.training.optim import LayerGroup
from bottleneck.training.results import PIXELS, ModelDraft, TrainingResult, conclude


def scratch(
    source: str | Path | Source,
    output: str | Path | None = None,
    *,
    backbone: str = ScratchConfig.backbone,
    depth: int | None = ScratchConfig.depth,
    target: str | None = ScratchConfig.target,
    in_channels: int = ScratchConfig.in_channels,
    image_size: int | None = ScratchConfig.image_size,
    crop: float | str | None = ScratchConfig.crop,
    decoding: str | None = ScratchConfig.decoding,
    augment: str = ScratchConfig.augment,
    epochs: int | None = None,
    patience: int = ScratchConfig.patience,
    batch_size: int = ScratchConfig.batch_size,
    optimizer: str = ScratchConfig.optimizer,
    lr: float | None = ScratchConfig.lr,
    weight_decay: float = ScratchConfig.weight_decay,
    warmup: float = ScratchConfig.warmup,
    clip: float = ScratchConfig.clip,
    label_smoothing: float = ScratchConfig.label_smoothing,
    val_fraction: float = ScratchConfig.val_fraction,
    seed: int = ScratchConfig.seed,
    memory: int = ScratchConfig.memory,
    device: str = ScratchConfig.device,
    precision: str = ScratchConfig.precision,
    trust_code: bool = ScratchConfig.trust_code,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    test_fraction: float = ReadConfig.test_fraction,
    limit: int | None = ReadConfig.limit,
    cache_images: str | None = ReadConfig.cache_images,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> TrainingResult:
    """Train a network with random weights on the images of `source`; the model predicts like any other.

    A run that was killed continues where it was when it is called again, and has the same result.

    Parameters
    ----------
    source : anything that `extract` takes, with labels
    output : path, optional
        The model; `models/SOURCE--TARGET--scratch.safetensors` by default.
    epochs : int, optional
        20 by default, or as many as make 200 steps.
    reporter : Reporter
        Receives the progress, and each epoch as it ends.
    strict : bool
        Refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    The other parameters are the fields of `training.config.ScratchConfig` and of `data.config.ReadConfig`.

    Raises
    ------
    SourceError, BackboneError
    FitError
        There are no labels, no val is possible, or there is one class only.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter()
    chosen_epochs = ScratchConfig.epochs if epochs is None else epochs
    config = config_from(ScratchConfig, locals(), epochs=chosen_epochs, extend=epochs is None)
    reading = config_from(ReadConfig, locals(), val_fraction=0.0)  # `labelled_splits` takes val from train
    return _train(read_source(source, reading), output, config, strict, started, reporter)


def _train(
    source: Source,
    output: str | Path | None,
    config: ScratchConfig,
    strict: bool,
    started: float,
    reporter: Reporter,
) -> TrainingResult:
    """Decode the images, train, and write the model. started : `time.perf_counter()` at the beginning."""
    target = target_of(source.samples, config.target)
    path = Path(output) if output else default_model(source, target)
    require_file_name(path)
    network = new_backbone(config)
    preprocess = network.preprocess.override(config.image_size, config.crop, config.decoding)
    unscaled = list(_unscaled_notes(source, preprocess))
    early = (*source.notes, *unscaled, *_early_notes(source, network, preprocess, target, config))
    refuse_strict(early, strict, reporter.tell)
    with decoded(source, source.images, preprocess, path.parent, reporter) as pixels:
        samples = readable_samples(source.samples, pixels)
        splits = labelled_splits(samples, target, val_fraction=config.val_fraction, seed=config.seed)
        n = len(splits.rows["train"])
        failures = {source.images[i]: reason for i, reason in pixels.failures.items()}
        unread = [unread_note(failures)] if failures else []
        read = [*source.notes, *source.reading_notes()]
        notes = [*read, *unscaled, *unread, *splits.notes, *config.epoch_notes(n)]
        config = config.for_samples(n)
        train: RowReader = pixels
        if config.augment == "live":
            train = LiveRows(source, source.images, preprocess, pixels, seed=config.seed)
        job = build_job(network, preprocess, Inputs(train, pixels), splits, target, config)
        refuse_strict([*notes, *job.notes], strict)
        draft = ModelDraft(
            path=path,
            kind="scratch",
            head=replace(
                _untrained_head(job.network, network, preprocess, splits, target),
                trained_on=seen_before({}, pixels.digests, splits.table, splits.rows["train"]),
            ),
            backbone=network,
            splits=splits,
            unfrozen=tuple(block.name for block in network.blocks[:-1]),
            input=PIXELS,
            notes=tuple(notes),
            failures=failures,
            data=source_sheet(source, samples, failures),
        )
        checkpoint = Checkpoint.beside(path, _fingerprint(source, network, preprocess, splits, config))
        job.train(checkpoint, reporter)
        result = conclude(job, draft, started, strict=strict)
    checkpoint.remove()
    return result


def _unscaled_notes(source: Source, preprocess: Preprocess) -> Iterator[Note]:
    """Yield a note where images are decoded at part of their size, which changes none."""
    if preprocess.decoding == SCALED:
        pairs = both_decodings(source, preprocess, thread_budget())
        if all(np.array_equal(a, b) for a, b in pairs):
            yield unscaled_note(preprocess, len(pairs))


def _early_notes(
    source: Source, network: Backbone, preprocess: Preprocess, target: str, config: ScratchConfig
) -> tuple[Note, ...]:
    """Return what is decided on labels and batches, as far as it is known before images are decoded.

    Raises FitError where labels, splits or the batch size allow no training.
    """
    splits = labelled_splits(source.samples, target, val_fraction=config.val_fraction, seed=config.seed)
    n = len(splits.rows["train"])
    if n // batch_count(n, config.batch_size) > 1:
        return splits.notes
    shape = (len(source.images), preprocess.size, preprocess.size, preprocess.channels)
    zeros = ArrayRows(np.broadcast_to(np.zeros(1, np.uint8), shape))
    job = build_job(network, preprocess, Inputs(zeros, zeros), splits, target, config)
    return (*splits.notes, *job.notes)


def build_job(
    backbone: Backbone,
    preprocess: Preprocess,
    inputs: Inputs,
    splits: LabelledSplits,
    target: str,
    config: ScratchConfig,
) -> TrainingJob[TransferNetwork]:
    """The whole backbone with a new classifier, whose weights are drawn by the seed, ready to train."""
    class_names = splits.table.targets[target].class_names
    cut = find_cut(backbone, BOTTLENECK, "all")
    section = Section(backbone, cut, BOTTLENECK, preprocess, statistics=True)
    D = splits.table.image.shape[1] * backbone.node_shape(BOTTLENECK, preprocess)[0][0]
    mean, scale = _covariate_scaling(splits, D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = new_classifier(backbone.name, len(mean), len(class_names))
    parameters = [pair for group in cut.parameters for pair in group]
    layers = [LayerGroup("network", 0, (*classifier.named_parameters(), *parameters))]
    network = TransferNetwork(section, classifier, mean, scale)
    device = training_device(config)
    return TrainingJob(network, layers, inputs, splits.samples(), len(class_names), config, device=device)


def new_backbone(config: ScratchConfig) -> Backbone:
    """The network with random weights drawn by the run's seed."""
    return load_backbone(
        config.backbone,
        weights="none",
        seed=config.seed,
        in_channels=config.in_channels,
        depth=config.depth,
        image_size=None if config.backbone == SMALL_CNN else config.image_size,
        trust_code=config.trust_code,
    )


def target_of(samples: SampleTable, name: str | None) -> str:
    """The requested target, or the only one. Raises FitError naming the choices."""
    if name is not None or len(samples.targets) == 1:
        return name or next(iter(samples.targets))
    known = ", ".join(samples.targets)
    raise FitError(
        f"The source has {counted(len(samples.targets), 'target')}{': ' + known if known else ''}; "
        "training needs one.",
        "Choose one with --target." if known else "Put images in class folders, or name --label-column.",
    )


def readable_samples(samples: SampleTable, pixels: PixelRows) -> SampleTable:
    """The samples all of whose images could be read."""
    readable = np.flatnonzero(~np.isin(samples.image, list(pixels.failures)).any(axis=1))
    return samples.take(readable)


def default_model(source: Source, target: str) -> Path:
    """`models/SOURCE--TARGET--scratch.safetensors` below the current folder."""
    name = file_name(source_name(source.location), target, "scratch")
    return Path("models") / f"{name}.safetensors"


def _untrained_head(
    network: TransferNetwork,
    backbone: Backbone,
    preprocess: Preprocess,
    splits: LabelledSplits,
    target: str,
) -> HeadArtifact:
    """The classifier as a head on the bottleneck of the network, before training."""
    arrays = folded(network, network.divisor.cpu().numpy())
    description = HeadDescription(
        target=target,
        target_kind="class",
        class_names=splits.table.targets[target].class_names,
        node=BOTTLENECK,
        images_per_sample=splits.table.image.shape[1],
        covariate_names=splits.table.covariate_names,
        columns=dict(splits.table.columns),
        backbone=backbone.recipe,
        preprocess=preprocess.to_json(),
        fingerprint=CacheSpec(backbone.recipe, preprocess.to_json()).fingerprint,
    )
    kind, form = ("mlp", "mlp") if "coef2" in arrays else ("logistic", "linear")
    return HeadFit(kind, form, "softmax", arrays, settings={"scratch": True}).artifact(description)


def _fingerprint(
    source: Source, backbone: Backbone, preprocess: Preprocess, splits: LabelledSplits, config: ScratchConfig
) -> str:
    """Fingerprint of everything that a run depends on; a checkpoint is valid for the same one only."""
    return fingerprint(
        {
            "backbone": backbone.recipe,
            "preprocess": preprocess.to_json(),
            "config": config.nested(),
            "torch": torch.__version__,
            "data": [list(source.images), [rows.tolist() for rows in splits.rows.values()]],
            "labels": splits.labels.tolist(),
            "root": source.root,
        }
    )


def _covariate_scaling(splits: LabelledSplits, D: int) -> tuple[np.ndarray, np.ndarray]:
    """mean and scale (D + P,) of the classifier's inputs: covariates are standardised, features are not."""
    covariates = splits.table.covariates[splits.rows["train"]]
    scale = covariates.std(axis=0)
    scale[scale == 0] = 1
    return np.concatenate([np.zeros(D), covariates.mean(axis=0)]), np.concatenate([np.ones(D), scale])
