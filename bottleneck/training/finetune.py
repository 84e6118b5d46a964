"""Fine-tuning from the cache: the head first, then the blocks below it from there (LP-FT, Kumar et al. 2022).

    head ──► its layers, standardised ─┐
    cached map of the frozen trunk ────┴─► train the unfrozen blocks ──► the best epoch, or the head itself

The frozen trunk does not run in the loop: its output for each image is constant, so it is cached. Before the
first step the network's logits are compared with the head's on the cached features; training continues from
there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Cut, Section, find_cut
from bottleneck.data.config import LabelConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import CacheError, FitError, Note
from bottleneck.files import require_file_name
from bottleneck.fitting.head_files import file_name
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.feature_map import ensure_map
from bottleneck.training.initial_head import (
    StartComparison,
    compare_start,
    faint_start,
    head_metrics,
    require_same_cache,
    starting_head,
)
from bottleneck.training.inputs import backbone_of, inputs_of, statistics_of
from bottleneck.training.job import Inputs, TrainingJob, training_device
from bottleneck.training.loss import Measured, measure
from bottleneck.training.lr_finder import FoundRate, find_rate
from bottleneck.training.network import TransferNetwork, network_of, renew
from bottleneck.training.optim import LayerGroup
from bottleneck.training.results import PIXELS, Fallback, ModelDraft, TrainingResult, conclude
from bottleneck.training.splits import LabelledSplits, labelled_splits


def finetune(
    cache: str | Path,
    head: str | Path,
    output: str | Path | None = None,
    *,
    unfreeze: int | str = FinetuneConfig.unfreeze,
    init: str = FinetuneConfig.init,
    views: int = FinetuneConfig.views,
    augment: str = FinetuneConfig.augment,
    batchnorm: str = FinetuneConfig.batchnorm,
    epochs: int = FinetuneConfig.epochs,
    patience: int = FinetuneConfig.patience,
    batch_size: int = FinetuneConfig.batch_size,
    optimizer: str = FinetuneConfig.optimizer,
    lr: float | None = FinetuneConfig.lr,
    backbone_ratio: float = FinetuneConfig.backbone_ratio,
    decay: float = FinetuneConfig.decay,
    weight_decay: float = FinetuneConfig.weight_decay,
    warmup: float = FinetuneConfig.warmup,
    unfreeze_every: int = FinetuneConfig.unfreeze_every,
    clip: float = FinetuneConfig.clip,
    label_smoothing: float = FinetuneConfig.label_smoothing,
    val_fraction: float = FinetuneConfig.val_fraction,
    seed: int = FinetuneConfig.seed,
    memory: int = FinetuneConfig.memory,
    device: str = FinetuneConfig.device,
    weights: str | None = FinetuneConfig.weights,
    trust_code: bool = FinetuneConfig.trust_code,
    labels: str | Path | None = FinetuneConfig.labels,
    group: str | None = FinetuneConfig.group,
    reporter: Reporter = SILENT,
) -> TrainingResult:
    """Unfreeze blocks below a head, and train them and the head, starting from the head as it is.

    A run that was killed continues where it was when it is called again, and has the same result.

    Parameters
    ----------
    cache, head : path
        A feature cache, and a head that was fitted on it.
    output : path, optional
        The model; `models/CACHE--TARGET--BLOCK.safetensors` by default.
    reporter : Reporter
        Receives the progress, the cost of long steps beforehand, and each epoch as it ends.

    The other parameters are the fields of `training.config.FinetuneConfig`.

    Raises
    ------
    FingerprintError, ArtifactError
        The head is of another cache.
    FitError
        No val is possible, or the network does not start with the head's logits.
    BackboneError
        There are fewer blocks than are to be unfrozen.
    CacheError
        The map is not cached, and the images are gone.
    """
    started = time.perf_counter()
    config = FinetuneConfig(
        unfreeze=unfreeze,
        init=init,
        views=views,
        augment=augment,
        batchnorm=batchnorm,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        backbone_ratio=backbone_ratio,
        decay=decay,
        weight_decay=weight_decay,
        warmup=warmup,
        unfreeze_every=unfreeze_every,
        clip=clip,
        label_smoothing=label_smoothing,
        val_fraction=val_fraction,
        seed=seed,
        memory=memory,
        device=device,
        weights=weights,
        trust_code=trust_code,
        labels=None if labels is None else str(labels),
        group=group,
    )
    plan = plan_finetuning(Path(cache), Path(head), config)
    path = Path(output) if output else default_model(plan)
    require_file_name(path)
    with open_job(plan, config, path.parent, reporter) as run:
        measured, notes = checked_start(plan, run, config)
        for note in notes:
            reporter.tell(f"Note: {note}")
        checkpoint = Checkpoint.beside(path, _fingerprint(plan, run.cache, config))
        run.job.train(checkpoint, reporter)
        draft = _draft(plan, run, path, notes, compared=config.init == "head")
        result = conclude(run.job, draft, started, _fallback(plan, run.cache, measured))
    checkpoint.remove()
    return result


def find_learning_rate(
    cache: str | Path, head: str | Path, config: FinetuneConfig, *, reporter: Reporter = SILENT
) -> FoundRate:
    """Find the learning rate to fine-tune with by trying (see `lr_finder`). Raises as `finetune` does."""
    plan = plan_finetuning(Path(cache), Path(head), config)
    with open_job(plan, config, default_model(plan).parent, reporter) as run:
        return find_rate(run.job.training, reporter)


@dataclass(frozen=True)
class FinetunePlan:
    """What is decided before the feature map is read.

    cache : path; identity : of its content (`cache_identity`)
    head : as it came; start : the head that training starts from (see `starting_head`)
    notes : what a reader must know of the labels
    """

    cache: Path
    identity: str
    head: HeadArtifact
    start: HeadArtifact
    splits: LabelledSplits
    backbone: Backbone
    cut: Cut
    notes: tuple[str | Note, ...] = ()


@dataclass(frozen=True)
class FinetuneRun:
    """A job on an open cache, ready to train.

    start : the comparison of the network as it began with the head. map_seconds : of extracting the map.
    """

    cache: FeatureCache
    job: TrainingJob[TransferNetwork]
    start: StartComparison
    map_seconds: float


def plan_finetuning(cache: Path, head_path: Path, config: FinetuneConfig) -> FinetunePlan:
    """Read the head, the labels and the backbone, and choose the samples and the blocks that are trained."""
    head = load_head(head_path)
    with FeatureCache(cache) as opened:
        kind = LabelConfig(classes=(head.target,) if head.target_kind == "class" else ())
        keys, targets = opened.images.key, (head.target,)
        samples, notes = relabelled(opened.samples, keys, config.labels, targets, config.group, kind)
        samples, unseen = with_training_classes(samples, targets)
        require_same_cache(head, opened, samples)
        _require_target(head, samples, cache, head_path)
        splits = labelled_splits(samples, head.target, val_fraction=config.val_fraction, seed=config.seed)
        backbone = backbone_of(opened, config.load)
        start = starting_head(head, opened, splits)
        identity = cache_identity(opened)
    cut = find_cut(backbone, head.node, config.unfreeze)
    return FinetunePlan(cache, identity, head, start, splits, backbone, cut, (*head.notes, *notes, *unseen))


@contextmanager
def open_job(
    plan: FinetunePlan, config: FinetuneConfig, folder: Path, reporter: Reporter
) -> Iterator[FinetuneRun]:
    """Yield the job on the open cache, with the feature map that it needs, compared with the head.

    Some features are nearly constant on train, and a head gives them large weights. The rounding of a map to
    float16 may then move the logits by more than training may start with; such a map is replaced by one in
    float32.

    folder : where decoded pixels are stored meanwhile.

    Raises
    ------
    CacheError
        The map has to be extracted, and images are gone or the disk is full; or the cache was changed
        meanwhile.
    """
    node, map_seconds = plan.cut.node, 0.0
    for dtype in (None, "float32"):
        if node is not None:
            map_seconds += ensure_map(
                plan.cache, node, views=config.views, dtype=dtype, options=config.load, reporter=reporter
            )
        with FeatureCache(plan.cache) as cache:
            require_unchanged(cache, plan.identity)
            with inputs_of(cache, plan.backbone, node, config, folder, reporter) as inputs:
                job = build_job(plan, cache, inputs, config)
                start = compare_start(job, plan.start, cache, plan.splits.rows["val"])
                if node is None or cache.node(node).dtype == "float32" or start.difference <= start.bound:
                    yield FinetuneRun(cache, job, start, map_seconds)
                    return
        reporter.tell(
            f"Rounded to float16, the map {node} moves the head's logits by {start.difference:.2g}, and "
            f"{start.bound:g} is allowed: it is extracted in float32 instead."
        )


def build_job(
    plan: FinetunePlan, cache: FeatureCache, inputs: Inputs, config: FinetuneConfig
) -> TrainingJob[TransferNetwork]:
    """The unfrozen blocks with the layers of the head, or with random ones, ready to train."""
    preprocess = Preprocess.from_json(cache.spec.preprocess)
    section = Section(plan.backbone, plan.cut, plan.start.node, preprocess, config.batchnorm == "train")
    network = network_of(section, plan.start)
    if config.init == "random":
        renew(network.classifier, config.seed)
    layers = [LayerGroup("head", 0, tuple(network.classifier.named_parameters()))]
    for depth, (block, parameters) in enumerate(
        zip(plan.cut.blocks, plan.cut.parameters, strict=True), start=1
    ):
        layers.append(LayerGroup(block, depth, parameters))
    return TrainingJob(
        network,
        layers,
        inputs,
        plan.splits.samples(),
        len(plan.start.class_names),
        config,
        device=training_device(config),
    )


def checked_start(
    plan: FinetunePlan, run: FinetuneRun, config: FinetuneConfig
) -> tuple[Measured, tuple[str | Note, ...]]:
    """The head measured on val, and what a reader must know of the start.

    Raises FitError where the network does not start with the head's logits.
    """
    measured = measure(run.start.head_logits, run.start.labels, run.job.training.objective)
    if config.init == "random":
        return measured, plan.notes
    notes = run.start.notes() + faint_start(run.start, run.cache, measured, config.labels)
    return measured, plan.notes + notes


def cache_identity(cache: FeatureCache) -> str:
    """A digest of the images and samples of a cache, which must not change while a run opens it again."""
    digest = hashlib.sha256(cache.fingerprint.encode())
    for array in (cache.images.digest, cache.samples.image):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def require_unchanged(cache: FeatureCache, identity: str) -> None:
    """Raise CacheError where the cache is not the one that `cache_identity` described."""
    if cache_identity(cache) != identity:
        raise CacheError(
            f"The images of {cache.path} changed while the run was being prepared.",
            "Run the same command again once nothing else writes the cache.",
        )


def default_model(plan: FinetunePlan) -> Path:
    """`models/CACHE--TARGET--LOWEST_UNFROZEN_BLOCK.safetensors` below the current folder."""
    return Path("models") / f"{file_name(plan.cache.stem, plan.head.target, plan.cut.blocks[-1])}.safetensors"


def _draft(
    plan: FinetunePlan, run: FinetuneRun, path: Path, notes: tuple[str | Note, ...], compared: bool
) -> ModelDraft:
    """The model as far as it is known before training."""
    trained_on = plan.cut.node or PIXELS
    finetuned = {"unfrozen": list(plan.cut.blocks), "input": trained_on}
    return ModelDraft(
        path=path,
        kind="finetuned",
        head=replace(plan.start, settings={**plan.start.settings, "finetuned": finetuned}),
        backbone=plan.backbone,
        splits=plan.splits,
        unfrozen=plan.cut.blocks,
        input=trained_on,
        map_seconds=run.map_seconds,
        difference_at_start=run.start.difference if compared else None,
        notes=notes,
    )


def _fallback(plan: FinetunePlan, cache: FeatureCache, measured: Measured) -> Fallback:
    """The head, measured on every split: on train and val the one that training started from."""
    metrics = head_metrics(plan.start, cache, plan.splits)
    if plan.start is not plan.head and "test" in metrics:
        metrics["test"] = head_metrics(plan.head, cache, plan.splits, ("test",))["test"]
    # Random weights need no more than their statistics, published ones nothing.
    tensors = {name: torch.from_numpy(array) for name, array in statistics_of(cache).items()}
    return Fallback(plan.head, tensors, measured, metrics)


def _fingerprint(plan: FinetunePlan, cache: FeatureCache, config: FinetuneConfig) -> str:
    """Of everything that decides the course of a run; a checkpoint is valid for the same one only."""
    digest = hashlib.sha256(torch.__version__.encode())
    for array in (*plan.start.arrays.values(), cache.images.digest, *plan.splits.rows.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(plan.splits.labels.tobytes())
    settings = replace(config, labels=None, group=None).nested()  # the labels themselves are in the digest
    data = {"config": settings, "cut": plan.cut.node, "data": digest.hexdigest()}
    return fingerprint({**data, "cache": cache.fingerprint, "node": plan.head.node})


def _require_target(head: HeadArtifact, samples: SampleTable, cache: Path, path: Path) -> None:
    """Raise FitError where the samples have no labels of the head's target: they are in another file."""
    if head.target not in samples.targets:
        known = ", ".join(map(repr, samples.targets)) or "none"
        raise FitError(
            f"The head answers target {head.target!r}; the cache has: {known}.",
            "Give the labels that it was fitted with: "
            f"`bottleneck finetune {quote(str(cache))} --head {quote(str(path))} --labels FILE`.",
        )
