"""Training from nothing, by the same loop: the baseline that transfer has to beat.

    images ──► decoded once ──► network with random weights ──► features, covariates ──► layers ──► logits

The small CNN has its own classifier (a hidden layer of 128); any other backbone gets one linear layer. Two
classes share one logit and binary cross-entropy.

Shapes: I images, S samples, M images per sample, P covariates, D inputs of the classifier, K logits.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.families import small_cnn
from bottleneck.backbones.registry import load_backbone
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_source, reading_options
from bottleneck.errors import FitError, Note
from bottleneck.fitting.head_files import file_name
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.spec import CacheSpec, fingerprint
from bottleneck.training.batches import Rows
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import (
    Inputs,
    RunConfig,
    build_training,
    enough_steps,
    run_config,
    split_metrics,
)
from bottleneck.training.inputs import LiveRows, PixelRows, decoded
from bottleneck.training.network import TransferNetwork, folded
from bottleneck.training.optim import LayerGroup, OptimConfig
from bottleneck.training.results import Result, notes_on, settings_of, write_files
from bottleneck.training.split_rows import Sets, labelled_sets

DEFAULTS = OptimConfig(lr=1e-3, weight_decay=1e-2)


@dataclass(frozen=True)
class ScratchConfig:
    """What is trained.

    backbone : registry name. depth : blocks of the small CNN.
    target : name of the labels; may be left out where there is one target.
    in_channels, image_size, crop : how images are read, as `extract` takes them.
    augment : "live" trains on a new view of each image in every epoch.
    """

    backbone: str = small_cnn.NAME
    depth: int | None = None
    target: str | None = None
    in_channels: int = 3
    image_size: int | None = None
    crop: float | str | None = None
    augment: str = "none"
    trust_code: bool = False
    run: RunConfig = field(default_factory=RunConfig)


def scratch(
    source: str | Path | Source,
    output: str | Path | None = None,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Result:
    """Train a network with random weights on the images of `source`; the model predicts like any other.

    Killed and called again, it goes on where it was and comes to the same result.

    Parameters
    ----------
    source : anything that `extract` takes, with labels
    output : path, optional
        The model; `models/SOURCE--TARGET--scratch.safetensors` by default.
    reporter, on_epoch
        Hear of long steps, and of each epoch as it ends.
    options
        Fields of `ScratchConfig`, `RunConfig` and `OptimConfig`, and the keyword arguments of `read_source`.
        Without `epochs` there are 20, or as many as make 200 steps.

    Raises
    ------
    SourceError, BackboneError
    FitError
        No labels, no val possible, one class only.
    """
    started = time.perf_counter()
    reading = reading_options(options, besides=("seed", "val_fraction"))
    epochs, run = options.get("epochs"), run_config(options, DEFAULTS)
    config = ScratchConfig(**{k: v for k, v in options.items() if v is not None}, run=run)
    source = read_source(source, replace(reading, seed=run.seed))
    target = target_of(source.samples, config.target)
    path = Path(output) if output else default_model(source, target)
    backbone = new_backbone(config)
    preprocess = backbone.preprocess.override(config.image_size, config.crop)
    with decoded(source, source.images, preprocess, path.parent, reporter) as pixels:
        samples = readable_samples(source.samples, pixels)
        sets = labelled_sets(samples, target, val_fraction=run.val_fraction, seed=run.seed)
        if not epochs:
            config = replace(config, run=enough_steps(run, len(sets.rows["train"])))
        train: Rows = pixels
        if config.augment == "live":
            train = LiveRows(source, source.images, preprocess, pixels.shape, seed=run.seed)
        job = Scratch(backbone, preprocess, Inputs(train, pixels), sets, target, config)
        checkpoint = Checkpoint(path.with_suffix(".checkpoint.safetensors"), job.fingerprint(source))
        job.train(checkpoint, reporter)
        failures = {source.images[i]: why for i, why in pixels.failures.items()}
        result = job.conclude(path, started, failures, source.notes)
    checkpoint.remove()
    return result


class Scratch:
    """One run from random weights.

    Parameters
    ----------
    backbone, preprocess, inputs, sets, config
    target : name of the labels
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocess: Preprocess,
        inputs: Inputs,
        sets: Sets,
        target: str,
        config: ScratchConfig,
    ) -> None:
        self.backbone, self.preprocess, self.inputs = backbone, preprocess, inputs
        self.sets, self.target, self.config = sets, target, config
        self.class_names = sets.table.targets[target].class_names
        cut = find_cut(backbone, BOTTLENECK, "all")
        section = Section(backbone, cut, BOTTLENECK, preprocess, statistics=True)
        D = sets.table.image.shape[1] * backbone.node_shape(BOTTLENECK, preprocess)[0][0]
        self.mean, self.scale = _covariate_scaling(sets, D)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            classifier = _classifier(len(self.mean), len(self.class_names), backbone.name)
        self.network = TransferNetwork(section, classifier, self.mean, self.scale)
        parameters = [pair for group in cut.parameters for pair in group]
        self.layers = [LayerGroup("network", 0, (*classifier.named_parameters(), *parameters))]

    def train(
        self,
        checkpoint: Checkpoint | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """Train; the network then holds the best epoch's parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.run.seed)
            self.training = build_training(
                self.network,
                self.layers,
                self.inputs,
                self.sets,
                len(self.class_names),
                self.config.run,
                checkpoint,
            )
            for record in self.training.records(reporter):
                reporter.epoch(record)

    def trained_metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics by split. Reads the test split: call it once, at the end."""
        temperature = self.training.state.best.temperature
        run = self.config.run
        return split_metrics(self.network, self.inputs, self.sets, self.class_names, temperature, run)

    def conclude(
        self, path: Path, started: float, failures: dict[str, str], notes: tuple[Note, ...] = ()
    ) -> Result:
        """Measure, and write the model with its card and history. `notes` : on how the images were read."""
        metrics, told = self.trained_metrics(), (*notes, *notes_on(self.training, self.sets))
        if failures:
            told += (f"{len(failures)} images could not be read, {next(iter(failures))} first.",)
        result = Result.of(
            self.training,
            self.sets,
            metrics,
            started,
            model=str(path),
            kept="scratch",
            target=self.target,
            classes=self.class_names,
            unfrozen=tuple(block.name for block in self.backbone.blocks[:-1]),
            input="pixels",
            head_accuracy={},
            notes=told,
            failures=failures,
        )
        state_dict = self.backbone.module.state_dict()
        write_files(path, self.artifact(metrics), state_dict, result, settings_of(self.config))
        return result

    def artifact(self, metrics: dict[str, Any]) -> HeadArtifact:
        """The classifier as a head on the network's bottleneck."""
        arrays = folded(self.network, self.scale)
        spec = CacheSpec(self.backbone.recipe, self.preprocess.to_json())
        return HeadArtifact(
            kind="mlp" if "coef2" in arrays else "logistic",
            form="mlp" if "coef2" in arrays else "linear",
            arrays=arrays,
            target=self.target,
            class_names=self.class_names,
            node=BOTTLENECK,
            images_per_sample=self.sets.table.image.shape[1],
            covariate_names=self.sets.table.covariate_names,
            temperature=self.training.state.best.temperature,
            settings={"scratch": True, "chosen_on": ["val"]},
            n_train=len(self.sets.rows["train"]),
            metrics=metrics,
            backbone=self.backbone.recipe,
            preprocess=self.preprocess.to_json(),
            fingerprint=spec.fingerprint,
        )

    def fingerprint(self, source: Source) -> str:
        """Of everything that decides the run's course."""
        data = [list(source.images), [[int(i) for i in rows] for rows in self.sets.rows.values()]]
        labels = self.sets.labels.tolist()
        recipe = {"backbone": self.backbone.recipe, "preprocess": self.preprocess.to_json()}
        settings = {"config": asdict(self.config), "torch": torch.__version__}
        return fingerprint({**recipe, **settings, "data": data, "labels": labels, "root": source.root})


def new_backbone(config: ScratchConfig) -> Backbone:
    """The network with random weights drawn by the run's seed."""
    return load_backbone(
        config.backbone,
        weights="none",
        seed=config.run.seed,
        in_channels=config.in_channels,
        depth=config.depth,
        trust_code=config.trust_code,
    )


def target_of(samples: SampleTable, name: str | None) -> str:
    """The target that is asked for, or the only one. Raises FitError naming the choices."""
    if name is not None or len(samples.targets) == 1:
        return name or next(iter(samples.targets))
    known = ", ".join(samples.targets)
    raise FitError(
        f"The source has {len(samples.targets)} targets{': ' + known if known else ''}; training needs one.",
        "Choose one with --target." if known else "Put images in class folders, or name --label-column.",
    )


def readable_samples(samples: SampleTable, pixels: PixelRows) -> SampleTable:
    """The samples all of whose images could be read."""
    failed = np.isin(samples.image, list(pixels.failures)).any(axis=1)
    return samples.take(~failed)


def default_model(source: Source, target: str) -> Path:
    """`models/SOURCE--TARGET--scratch.safetensors` below the current folder."""
    name = file_name(Path(source.root.rstrip("/")).stem or "images", target, "scratch")
    return Path("models") / f"{name}.safetensors"


def _covariate_scaling(sets: Sets, D: int) -> tuple[np.ndarray, np.ndarray]:
    """mean and scale (D + P,) of the classifier's inputs: covariates are standardised, features are not."""
    covariates = sets.table.covariates[sets.rows["train"]]
    scale = covariates.std(axis=0)
    scale[scale == 0] = 1
    return np.concatenate([np.zeros(D), covariates.mean(axis=0)]), np.concatenate([np.ones(D), scale])


def _classifier(inputs: int, classes: int, backbone: str) -> nn.Sequential:
    """Layers on the features and covariates; two classes share one logit."""
    if backbone == small_cnn.NAME:
        return small_cnn.classifier(inputs, classes)
    return nn.Sequential(nn.Linear(inputs, 1 if classes == 2 else classes))
