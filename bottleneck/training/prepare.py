"""The preparation of a fine-tuning run: head, labels, backbone, feature map, and the job that trains.

    plan_finetuning    read the head and the cache; choose samples and blocks
    open_job           extract the feature map unless it is cached, build the job, compare it with the head

Between the two the cache is closed, since extracting a map writes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Cut, Section, find_cut
from bottleneck.data.config import LabelConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import CacheError, FitError, Note
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.progress import Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.feature_map import ensure_map
from bottleneck.training.initial_head import (
    StartComparison,
    compare_start,
    require_same_cache,
    starting_head,
)
from bottleneck.training.inputs import backbone_of, inputs_of
from bottleneck.training.job import Inputs, TrainingJob, training_device
from bottleneck.training.network import TransferNetwork, network_of, renew
from bottleneck.training.optim import LayerGroup
from bottleneck.training.splits import LabelledSplits, labelled_splits


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


def _require_target(head: HeadArtifact, samples: SampleTable, cache: Path, path: Path) -> None:
    """Raise FitError where the samples have no labels of the head's target: they are in another file."""
    if head.target not in samples.targets:
        known = ", ".join(map(repr, samples.targets)) or "none"
        raise FitError(
            f"The head answers target {head.target!r}; the cache has: {known}.",
            "Give the labels that it was fitted with: "
            f"`bottleneck finetune {quote(str(cache))} --head {quote(str(path))} --labels FILE`.",
        )
