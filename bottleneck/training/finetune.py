"""Fine-tuning from the cache: the head first, then the blocks below it from there (LP-FT, Kumar et al. 2022).

    head ──► its layers, standardised ─┐
    cached map of the frozen trunk ────┴─► train the unfrozen blocks ──► the best epoch, or the head itself

The frozen trunk never runs in the loop: what the unfrozen blocks are fed with is constant, so it is cached.
At the start the logits are compared with the head's on its own cached features; training goes on from there.

Shapes: n samples of a split, C classes.

One run of fine-tuning: a network that starts as the head, trains, and is held against the head.

Shapes: n samples of a split, C classes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.section import Cut, Section, find_cut
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import FitError, Note
from bottleneck.fitting.head_files import file_name
from bottleneck.fitting.labels import relabelled
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import Inputs, RunConfig, build_training, run_config, split_metrics
from bottleneck.training.feature_map import ensure_exact_map
from bottleneck.training.initial_head import (
    faint_start,
    head_inputs,
    head_metrics,
    logits_on,
    require_same_cache,
    require_same_start,
    starting_head,
)
from bottleneck.training.inputs import backbone_of, inputs_of, statistics_of
from bottleneck.training.loss import Objective, logits_of, measure
from bottleneck.training.lr_finder import FoundRate, find_rate
from bottleneck.training.network import folded, network_of, renew
from bottleneck.training.optim import LayerGroup
from bottleneck.training.results import Result, accuracies, notes_on, settings_of, write_files
from bottleneck.training.split_rows import Sets, labelled_sets

CHOICES = {"init": ("head", "random"), "augment": ("none", "live"), "batchnorm": ("fixed", "train")}


@dataclass(frozen=True)
class FinetuneConfig:
    """What trains, and on what.

    unfreeze : number of blocks below the head, a block or node (it and all above it), or "all".
    init : "head", or "random" to start from new last layers instead.
    views : cached views per image, of which each epoch draws one; 0 trains on the plain features.
    augment : "live" makes a new view of each image in every epoch and runs the frozen trunk on it.
    batchnorm : "fixed", or "train" to renew its statistics (then dropout is active, too).
    weights : the backbone's weights file, where the cache was made with one.
    trust_code : allow a backbone that the cache names as package.module:function.
    labels : table of the answers, in place of the cache's (`labelling.join_labels`).
    group : column of `labels`; samples of one group are not parted where val is carved from train.
    """

    unfreeze: int | str = 1
    init: str = "head"
    views: int = 0
    augment: str = "none"
    batchnorm: str = "fixed"
    weights: str | None = None
    trust_code: bool = False
    labels: str | None = None
    group: str | None = None
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise FitError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(choices)}.")
        if self.views and self.augment == "live":
            raise FitError("Cached views and live ones are two ways to one end.", "Choose one of them.")


def finetune_config(options: dict[str, Any]) -> FinetuneConfig:
    """The settings that `options` name: fields of FinetuneConfig, RunConfig and OptimConfig."""
    options = dict(options)
    run = run_config(options)
    if options.get("labels") is not None:
        options["labels"] = str(options["labels"])
    return FinetuneConfig(**options, run=run)


class Finetuning:
    """One run: a network that starts as the head, trains, and is held against the head.

    Parameters
    ----------
    cache, backbone, cut, inputs, sets, config
    head : HeadArtifact
        As it came.
    start : HeadArtifact, optional
        The one that training starts from, where it is another (see `start.starting_head`).
    path : of the model; map_seconds : that extraction took before
    notes : what a reader must know of the labels

    Attributes
    ----------
    training : Training
        The loop, ready to start.
    difference : greatest difference from the head's logits at the start, on val; None from new layers.
    """

    def __init__(
        self,
        cache: FeatureCache,
        backbone: Backbone,
        cut: Cut,
        inputs: Inputs,
        sets: Sets,
        head: HeadArtifact,
        config: FinetuneConfig,
        start: HeadArtifact | None = None,
        path: Path = Path(),
        map_seconds: float = 0.0,
        notes: tuple[str | Note, ...] = (),
    ) -> None:
        self.path, self.map_seconds = path, map_seconds
        self.cache, self.backbone, self.cut = cache, backbone, cut
        self.inputs, self.sets, self.head, self.config = inputs, sets, head, config
        self.start = start or head
        self.objective = Objective(len(head.class_names), config.run.label_smoothing)
        preprocess = Preprocess.from_json(cache.spec.preprocess)
        section = Section(backbone, cut, head.node, preprocess, config.batchnorm == "train")
        self.network = network_of(section, self.start)
        if config.init == "random":
            renew(self.network.classifier, config.run.seed)
        self.difference: float | None = None
        self.notes = notes
        layers = [LayerGroup("head", 0, tuple(self.network.classifier.named_parameters()))]
        for depth, (block, parameters) in enumerate(zip(cut.blocks, cut.parameters, strict=True), start=1):
            layers.append(LayerGroup(block, depth, parameters))
        self.training = build_training(self.network, layers, inputs, sets, self.objective.classes, config.run)

    def compare(self) -> None:
        """Hold the start against the head on val.

        Raises FitError where the network does not say what the head says.
        """
        cached = torch.from_numpy(head_inputs(self.cache, self.head.node, self.sets.rows["val"]))
        val, device = self.training.val, self.training.device
        found, labels = logits_of(self.network, val, device, self.network.inputs)
        expected = logits_on(self.start, cached)
        self.head_on_val = measure(expected, labels, self.objective)
        if self.config.init == "head":
            with torch.inference_mode():
                logits = self.network.classify(found.to(device)).cpu()
            node = self.cache.node(self.head.node)
            self.difference, notes = require_same_start(self.start, node, cached, found, logits)
            self.notes += notes + faint_start(
                self.start, self.cache, expected, labels, self.head_on_val, self.config.labels
            )

    def train(
        self,
        checkpoint: Checkpoint | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """Train; the network then holds the best epoch's parameters."""
        self.training.checkpoint = checkpoint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.run.seed)
            for record in self.training.records(reporter):
                reporter.epoch(record)

    @property
    def kept(self) -> str:
        """ "finetuned" where an epoch of training beats the head on val, else "head"."""
        state = self.training.state
        better = state.best_epoch > 0 and state.best.beats(self.head_on_val)
        return "finetuned" if better else "head"

    def head_metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics of the head by split: on train and val of the one that training started from."""
        found = head_metrics(self.start, self.cache, self.sets)
        if self.start is not self.head and "test" in found:
            found["test"] = head_metrics(self.head, self.cache, self.sets, ("test",))["test"]
        return found

    def trained_metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics by split of the best epoch. Reads the test split: call it once, at the end."""
        temperature, run = self.training.state.best.temperature, self.config.run
        return split_metrics(self.network, self.inputs, self.sets, self.head.class_names, temperature, run)

    def conclude(self, started: float) -> Result:
        """Measure what is kept, and write it with its card and history."""
        head = self.head_metrics()
        metrics = self.trained_metrics() if self.kept == "finetuned" else head
        result = Result.of(
            self.training,
            self.sets,
            metrics,
            started,
            model=str(self.path),
            kept=self.kept,
            target=self.head.target,
            classes=self.head.class_names,
            unfrozen=self.cut.blocks,
            input=self.cut.node or "pixels",
            head_accuracy=accuracies(head),
            best_epoch=self.training.state.best_epoch if self.kept == "finetuned" else 0,
            max_logit_difference_at_start=self.difference,
            map_seconds=self.map_seconds,
            notes=self.notes + notes_on(self.training, self.sets),
        )
        if self.kept == "finetuned":
            network = self.backbone.module.state_dict()
        else:  # random weights need no more than their statistics, published ones nothing
            network = {name: torch.from_numpy(array) for name, array in statistics_of(self.cache).items()}
        write_files(self.path, self.artifact(metrics), network, result, settings_of(self.config))
        return result

    def artifact(self, metrics: dict[str, Any]) -> HeadArtifact:
        """The head of the model that is kept. Val chose it, be it the head itself."""
        if self.kept == "head":
            return replace(self.head, settings={**self.head.settings, "chosen_on": ["val"]})
        finetuned = {"unfrozen": list(self.cut.blocks), "input": self.cut.node or "pixels"}
        return replace(
            self.start,
            arrays=folded(self.network, self.start.scale),
            link="softmax",
            temperature=self.training.state.best.temperature,
            settings={**self.start.settings, "finetuned": finetuned, "chosen_on": ["val"]},
            node_fingerprint="",  # no cache has features of this network
            cv={},
            n_train=len(self.sets.rows["train"]),
            metrics=metrics,
        )

    def fingerprint(self) -> str:
        """Of everything that decides the run's course; a checkpoint is good for the same one only."""
        digest = hashlib.sha256(torch.__version__.encode())
        for array in (*self.start.arrays.values(), self.cache.images.digest, *self.sets.rows.values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.sets.labels.tobytes())
        config = asdict(replace(self.config, labels=None, group=None))  # what they say is in the digest
        settings = {"config": config, "cut": self.cut.node, "data": digest.hexdigest()}
        return fingerprint({**settings, "cache": self.cache.fingerprint, "node": self.head.node})


def finetune(
    cache: str | Path,
    head: str | Path,
    output: str | Path | None = None,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Result:
    """Unfreeze blocks below a head, and train them and the head from where the head stands.

    Killed and called again, it goes on where it was and comes to the same result.

    Parameters
    ----------
    cache, head : path
        A feature cache, and a head that was fitted on it.
    output : path, optional
        The model; `models/CACHE--TARGET--BLOCK.safetensors` by default.
    reporter, tell, on_epoch
        Hear of long steps, of what they will cost beforehand, and of each epoch as it ends.
    options
        Fields of `FinetuneConfig`, `RunConfig` and `OptimConfig`.

    Raises
    ------
    FingerprintError, ArtifactError
        The head is of another cache.
    FitError
        More blocks than there are, no val possible, a start that is not the head's.
    CacheError
        The map is not cached, and the images are gone.
    """
    started = time.perf_counter()
    config = finetune_config(options)
    with prepared(Path(cache), head, config, output, reporter) as job:
        checkpoint = Checkpoint(job.path.with_suffix(".checkpoint.safetensors"), job.fingerprint())
        job.compare()
        for note in job.notes:
            reporter.tell(f"Note: {note}")
        job.train(checkpoint, reporter)
        result = job.conclude(started)
    checkpoint.remove()
    return result


def find_learning_rate(
    cache: str | Path,
    head: str | Path,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> FoundRate:
    """The learning rate to fine-tune with, found by trying (see `lr_finder`). Arguments as of `finetune`."""
    config = finetune_config(options)
    with prepared(Path(cache), head, config, None, reporter) as job:
        return find_rate(job.training, reporter)


@contextmanager
def prepared(
    cache: Path,
    head: str | Path,
    config: FinetuneConfig,
    output: str | Path | None,
    reporter: Reporter,
) -> Iterator[Finetuning]:
    """A run on an open cache that has the map it needs."""
    artifact, run = load_head(head), config.run
    with FeatureCache(cache) as opened:
        labels = (config.labels, (artifact.target,), config.group)
        samples, notes = relabelled(opened.samples, opened.images.key, *labels)
        require_same_cache(artifact, opened, samples)
        _require_target(artifact, samples, cache, head)
        sets = labelled_sets(samples, artifact.target, val_fraction=run.val_fraction, seed=run.seed)
        options = LoadOptions(config.weights, config.trust_code)
        backbone = backbone_of(opened, options)
        start = starting_head(artifact, opened, sets)
    cut = find_cut(backbone, artifact.node, config.unfreeze)
    path = Path(output) if output else default_model(cache, artifact, cut)
    asked = {"options": options, "reporter": reporter}
    map_seconds = 0.0
    if cut.node:
        map_seconds = ensure_exact_map(cache, backbone, cut, start, sets, run, views=config.views, **asked)
    kind = {"views": config.views > 0, "live": config.augment == "live"}
    with (
        FeatureCache(cache) as opened,
        inputs_of(
            opened, backbone, cut.node, **kind, seed=run.seed, folder=path.parent, reporter=reporter
        ) as inputs,
    ):
        yield Finetuning(
            opened, backbone, cut, inputs, sets, artifact, config, start, path, map_seconds, tuple(notes)
        )


def _require_target(head: HeadArtifact, samples: SampleTable, cache: Path, path: str | Path) -> None:
    """Raise FitError where the samples do not have the head's answers: they lie in a file of their own."""
    if head.target not in samples.targets:
        known = ", ".join(map(repr, samples.targets)) or "none"
        raise FitError(
            f"The head answers target {head.target!r}; the cache has: {known}.",
            "Give the labels that it was fitted with: "
            f"`bottleneck finetune {quote(str(cache))} --head {quote(str(path))} --labels FILE`.",
        )


def default_model(cache: Path, head: HeadArtifact, cut: Cut) -> Path:
    """`models/CACHE--TARGET--LOWEST_UNFROZEN_BLOCK.safetensors` below the current folder."""
    return Path("models") / f"{file_name(cache.stem, head.target, cut.blocks[-1])}.safetensors"
