"""Settings of training and their defaults, without torch, so that a command's help can import this module.

One class per public function: `FinetuneConfig`, `ScratchConfig` and `CompareConfig` add their own fields to
`TrainingConfig`, which holds what the epoch loop and the optimizer need.

What BatchNorm does while a network is fine-tuned (`FinetuneConfig.batchnorm`): with "fixed" the unfrozen
blocks stay in evaluation mode, so the running statistics are those of the original network to the bit and
dropout is off; with "train" the statistics are updated from each batch and dropout is on. Either way the
weights and biases of BatchNorm layers in unfrozen blocks are trained, and everything in frozen blocks stays
as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import FitError, Note, counted
from bottleneck.names import BOTTLENECK, DECODINGS, SMALL_CNN

OPTIMIZERS = ("adamw", "sgd")
INITS = ("head", "random")
AUGMENTS = ("none", "live")
BATCHNORMS = ("fixed", "train")
TRAINING_PRECISIONS = ("fp32", "bf16")
ALL = "all"  # of the blocks, or of the train samples

# Few samples make short epochs. A new network needs some steps however few samples there are: the statistics
# of BatchNorm alone take 20 to settle, and until then the accuracy on val means nothing.
LEAST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    optimizer : "adamw", or "sgd" with momentum 0.9.
    lr : learning rate of the head; None takes the optimizer's entry in `rates`.
    backbone_ratio : learning rate of the uppermost block over the head's (LP-FT, Kumar et al. 2022).
    decay : factor from one block to the one below it (Howard and Ruder 2018).
    weight_decay : not applied to biases and norms.
    warmup : share of all steps in which the rate rises linearly from 0.
    unfreeze_every : epochs between the start of one block and of the block below it (gradual unfreezing);
        0 trains all from the first step.
    clip : greatest norm of the gradient of all parameters together; 0 does not clip.
    """

    rates: ClassVar[Mapping[str, float]] = {"adamw": 6e-3, "sgd": 0.1}  # for inputs of unit norm

    optimizer: str = "adamw"
    lr: float | None = None
    backbone_ratio: float = 0.1
    decay: float = 0.8
    weight_decay: float = 0.0
    warmup: float = 0.1
    unfreeze_every: int = 0
    clip: float = 1.0

    def __post_init__(self) -> None:
        _require_choice(self, "optimizer", OPTIMIZERS)
        for name, low, high in (
            ("learning_rate", 0.0, 1e3),
            ("backbone_ratio", 0.0, 1e3),
            ("decay", 0.0, 1.0),
        ):
            if not low < getattr(self, name) <= high:
                raise _out_of_range(self, name, low, high)
        for name, high in (("weight_decay", 1e3), ("warmup", 1.0), ("clip", math.inf)):
            if not 0 <= getattr(self, name) <= high:
                raise _out_of_range(self, name, 0, high)

    @property
    def learning_rate(self) -> float:
        """`lr`, or the default of the optimizer."""
        return self.rates[self.optimizer] if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OptimConfig):
    """How long a network is trained, and how its samples are read.

    epochs : at most.
    patience : epochs without a better one on val after which to stop; 0 never stops early.
    batch_size : samples of a step.
    label_smoothing : share of the target that is spread over all classes (why 0.1: see `optim`).
    val_fraction : share of train that becomes val where there is no val split.
    seed : of the order of samples, random draws and new weights.
    memory : bytes that maps or pixels may take; what does not fit is read in shuffled chunks.
    device : "auto", "cpu", "cuda", "mps" …
    extend : train for more epochs where `epochs` would make fewer than LEAST_STEPS steps.
    precision : "bf16" computes the steps in bfloat16; parameters, and what is measured, stay float32.
    """

    epochs: int = 20
    patience: int = 8
    batch_size: int = 32
    label_smoothing: float = 0.1
    val_fraction: float = 0.2
    seed: int = 0
    memory: int = 1 << 30
    device: str = "auto"
    extend: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice(self, "precision", TRAINING_PRECISIONS)
        for name, low in (("epochs", 1), ("patience", 0), ("batch_size", 1), ("memory", 1)):
            if getattr(self, name) < low:
                raise FitError(f"{name} is {getattr(self, name)}; expected {low} or more.")
        if not 0 <= self.label_smoothing < 1:
            raise FitError(f"label_smoothing is {self.label_smoothing}; expected 0 up to 1.")

    def for_samples(self, n: int) -> Self:
        """The settings for `n` train samples: with `extend`, enough epochs, and patience in proportion."""
        steps = self.epochs * -(-n // self.batch_size)
        times = max(1, -(-LEAST_STEPS // steps)) if self.extend else 1
        return replace(self, epochs=self.epochs * times, patience=self.patience * times)

    def epoch_notes(self, n: int) -> list[Note]:
        """A note where `for_samples(n)` trains for more epochs."""
        epochs = self.for_samples(n).epochs
        if epochs == self.epochs:
            return []
        text = (
            f"{counted(n, 'sample makes', 'samples make')} few steps an epoch, so up to "
            f"{counted(epochs, 'epoch is', 'epochs are')} trained instead of "
            f"{self.epochs}. --epochs sets their number."
        )
        return [Note("epochs-extended", text, details={"epochs": epochs})]

    def nested(self) -> dict[str, Any]:
        """The settings as {…, run: {…, optim: {…}}}: fingerprints of checkpoints are computed from it."""
        optim = {**_values(self, OptimConfig), "lr": self.learning_rate}
        run = _values(self, TrainingConfig, OptimConfig)
        own = _values(self, type(self), TrainingConfig)
        run.pop("extend")
        if self.precision == "fp32":  # as in the fingerprints of before there was a choice
            run.pop("precision")
        return {**own, "run": {**run, "optim": optim}}

    def shown(self) -> dict[str, Any]:
        """The settings in one table for people, without those that are not set."""
        own = self.nested()
        run = own.pop("run")
        optim = run.pop("optim")
        return {name: value for name, value in {**own, **run, **optim}.items() if value not in (None, "")}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """What is fine-tuned.

    unfreeze : number of blocks below the head, a block or node (it and all above it), or "all".
    init : "head", or "random" to start from new layers in place of the head's.
    views : cached views per image, of which each epoch draws one; 0 trains on the plain features.
    augment : "live" makes a new view of each image in every epoch and runs the frozen trunk on it.
    batchnorm : "fixed" or "train" (see the module).
    weights : the backbone's weights file, for a cache that was made with one.
    trust_code : allow a backbone that the cache names as package.module:function.
    labels : table of labels that replace the cache's (`fitting.labels`).
    group : column of `labels`; samples of one group stay together where val is taken from train.
    label_separator : character between several labels in one cell of `labels`.
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
    label_separator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice(self, "init", INITS)
        _require_choice(self, "augment", AUGMENTS)
        _require_choice(self, "batchnorm", BATCHNORMS)
        if self.views and self.augment == "live":
            raise FitError("Cached views and live ones are two ways to one end.", "Choose one of them.")

    @property
    def load(self) -> LoadOptions:
        """What loading the cache's backbone needs."""
        return LoadOptions(self.weights, self.trust_code)


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(TrainingConfig):
    """What is trained from random weights.

    backbone : registry name. depth : blocks of the small CNN.
    target : name of the labels; may be left out where there is one target.
    in_channels, image_size, crop, decoding : how images are read, as `extract` takes them.
    augment : "live" trains on a new view of each image in every epoch.
    trust_code : allow a backbone given as package.module:function.
    """

    rates: ClassVar[Mapping[str, float]] = {"adamw": 1e-3, "sgd": 0.1}

    weight_decay: float = 1e-2
    extend: bool = True
    backbone: str = SMALL_CNN
    depth: int | None = None
    target: str | None = None
    in_channels: int = 3
    image_size: int | None = None
    crop: float | str | None = None
    decoding: str | None = None
    augment: str = "none"
    trust_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice(self, "augment", AUGMENTS)
        if self.decoding is not None:
            _require_choice(self, "decoding", DECODINGS)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """What is compared.

    unfreeze : blocks; 0 is the head alone. init : "head", "random". scratch : depths of the small CNN.
    shots : train samples per class, or "all". seeds : runs of each, different in order, draws and new
        weights.
    target, node : which labels the heads predict, and from which features.
    weights, trust_code, labels, group, label_separator : as in `FinetuneConfig`.
    classes, regression : targets of `labels` whose numbers are names of classes, or quantities.
    """

    extend: bool = True
    unfreeze: tuple[int | str, ...] = (0, 1, 2)
    init: tuple[str, ...] = INITS
    scratch: tuple[int, ...] = ()
    shots: tuple[int | str, ...] = (ALL,)
    seeds: int = 3
    target: str | None = None
    node: str = BOTTLENECK
    weights: str | None = None
    trust_code: bool = False
    labels: str | Path | None = None
    group: str | None = None
    label_separator: str | None = None
    classes: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("unfreeze", "init", "scratch", "shots", "classes", "regression"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, least in (("shots", 1), ("unfreeze", 0)):
            for value in getattr(self, name):
                if isinstance(value, int) and value < least:
                    raise FitError(f"{name} is {value}; expected {least} or more, or all.")
        if self.seeds < 1:
            raise FitError(f"seeds is {self.seeds}; expected 1 or more.")

    @property
    def load(self) -> LoadOptions:
        """What loading the cache's backbone needs."""
        return LoadOptions(self.weights, self.trust_code)

    def finetuning(self, *, unfreeze: int | str, init: str) -> FinetuneConfig:
        """The settings of one fine-tuning run of the comparison."""
        return FinetuneConfig(
            unfreeze=unfreeze,
            init=init,
            weights=self.weights,
            trust_code=self.trust_code,
            **_values(self, TrainingConfig),
        )

    def from_scratch(self, depth: int) -> ScratchConfig:
        """The settings of one run from scratch: the optimizer and its rates are those of `scratch`."""
        return ScratchConfig(depth=depth, **_values(self, TrainingConfig, OptimConfig))


def _values(
    config: TrainingConfig, kind: type[OptimConfig], without: type[OptimConfig] | None = None
) -> dict[str, Any]:
    """The values of the fields of `kind`, but for those of `without`."""
    left_out = {item.name for item in fields(without)} if without else set()
    return {item.name: getattr(config, item.name) for item in fields(kind) if item.name not in left_out}


def _require_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise FitError(f"{name} is {getattr(config, name)!r}; expected {' or '.join(choices)}.")


def _out_of_range(config: OptimConfig, name: str, low: float, high: float) -> FitError:
    shown = "lr" if name == "learning_rate" else name
    return FitError(f"{shown} is {getattr(config, name)}; expected a number from {low:g} to {high:g}.")
