"""One run of fine-tuning: a network that starts as the head, trains, and is held against the head.

Shapes: n samples of a split, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Cut, Section
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.progress import Progress, silent
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.feeds import statistics_of
from bottleneck.training.loop import EpochRecord
from bottleneck.training.measure import logits_of, measure
from bottleneck.training.network import folded, network_of, renew
from bottleneck.training.objective import Objective
from bottleneck.training.optim import LayerGroup
from bottleneck.training.result import Result, accuracies, notes_on, settings_of, write_files
from bottleneck.training.run import Inputs, RunConfig, build_training, run_config, split_metrics
from bottleneck.training.sets import Sets
from bottleneck.training.start import faint_start, head_inputs, head_metrics, logits_on, require_same_start

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
        notes: tuple[str, ...] = (),
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
        progress: Progress = silent,
        on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    ) -> None:
        """Train; the network then holds the best epoch's parameters."""
        self.training.checkpoint = checkpoint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.run.seed)
            for record in self.training.records(progress):
                on_epoch(record)

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
