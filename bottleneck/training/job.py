"""One training job: a network, its samples and its settings. Every network that is trained is trained by one.

Fine-tuning, training from scratch and the transfer study differ in the data of the job only: which network,
which layers learn at which rate, what rows they are fed with.

`pace` estimates what it will cost, before it starts.

Shapes: L logits of the network, B samples of a batch, M images per sample, P covariates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from bottleneck.engines.device import resolve_device, trains_in_bf16
from bottleneck.errors import FitError, Note, counted
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader
from bottleneck.threads import available_cores, use_torch_threads
from bottleneck.training.batches import Batches, EpochRows, SampleSet, batch_count
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import TrainingConfig
from bottleneck.training.loop import CPU, Training, step_precision
from bottleneck.training.loss import Objective, logits_of, metrics_of, two_logits
from bottleneck.training.optim import LayerGroup, Schedule, build_optimizer

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Inputs:
    """Rows by image that a network is fed with.

    train : in training. plain : in measuring, as prediction sees them.
    draw_views : `train` has several views of each image, of which each epoch draws one.
    unread : by image, why it has no row; its samples are to be left out.
    """

    train: RowReader
    plain: RowReader
    draw_views: bool = False
    unread: Mapping[int, str] = field(default_factory=dict)


class TrainingJob(Generic[Network]):
    """A network that is trained on `samples["train"]` and chosen, epoch by epoch, on `samples["val"]`.

    Parameters
    ----------
    network : nn.Module
        Called with rows and covariates of a batch, returns logits (B, L).
    layers : sequence of LayerGroup
        Of depth 0, 1, …; parameters that are in none stay as they are.
    inputs : Inputs
    samples : {split: SampleSet}
    classes : int
    config : TrainingConfig
    device : torch.device
    measure_size : int, optional
        Samples that are measured at once; twice the batch size by default.
    choose_best : bool
        False ends with the parameters of the last epoch.

    Attributes
    ----------
    training : Training
        The loop and its state.
    notes : tuple of Note
        What was decided on the batches.

    Raises
    ------
    FitError
        BatchNorm in training would see one value per channel, and batches cannot be larger.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[LayerGroup],
        inputs: Inputs,
        samples: Mapping[str, SampleSet],
        classes: int,
        config: TrainingConfig,
        *,
        device: torch.device = CPU,
        measure_size: int | None = None,
        choose_best: bool = True,
    ) -> None:
        self.network, self.inputs, self.samples, self.config = network, inputs, samples, config
        self.device, self.measure_size = device, measure_size or 2 * config.batch_size
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        network.to(device).train()
        least, self.notes = fewest_samples(network, inputs.plain, samples["train"], config.batch_size, device)
        train = Batches(
            inputs.train,
            samples["train"],
            config.batch_size,
            least=least,
            seed=config.seed,
            memory=config.memory,
            draw_views=inputs.draw_views,
        )
        self.training = Training(
            module=network,
            objective=Objective(classes, config.label_smoothing),
            optimizer=build_optimizer(layers, config),
            schedule=Schedule(config.epochs * train.steps, config.warmup),
            train=train,
            val=self.plain_batches("val"),
            epochs=config.epochs,
            patience=config.patience,
            clip=config.clip,
            device=device,
            choose_best=choose_best,
            precision=config.precision,
            by_sample=getattr(network, "by_sample", False),
        )

    def train(self, checkpoint: Checkpoint | None = None, reporter: Reporter = SILENT) -> None:
        """Train to the end, from the checkpoint where there is one; random numbers follow from the seed."""
        self.training.checkpoint = checkpoint
        reporter.tell(self.rates_text())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.training.run(reporter)

    def row_notes(self) -> tuple[Note, ...]:
        """What was decided on the rows while they were read."""
        rows = self.inputs.train
        return rows.notes() if isinstance(rows, EpochRows) else ()

    def rates_text(self) -> str:
        """The learning rate of each parameter group, in one line."""
        shown: dict[str, str] = {}
        for group in self.training.optimizer.param_groups:
            start = group["start_epoch"]
            shown[group["name"]] = f"{group['base_lr']:.3g}" + (f" from epoch {start}" if start > 1 else "")
        rates = ", ".join(f"{name} {rate}" for name, rate in shown.items())
        rising = f"{self.config.warmup:.0%} of the steps"
        return f"Largest learning rates: {rates}. They rise over {rising}, then fall to 0."

    def logits(self, split: str) -> np.ndarray:
        """Logits (n, K) of the network for the samples of a split, in their order."""
        return two_logits(logits_of(self.network, self.plain_batches(split), self.device)[0]).numpy()

    def metrics(self, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The metrics of the trained network on every split. It reads test: call it once, at the end."""
        temperature = self.training.best.temperature
        return {
            split: metrics_of(
                *logits_of(self.network, self.plain_batches(split), self.device), class_names, temperature
            )
            for split in self.samples
        }

    def plain_batches(self, split: str) -> Batches:
        """The samples of a split in their order, as prediction sees them."""
        return Batches(
            self.inputs.plain,
            self.samples[split],
            self.measure_size,
            shuffle=False,
            memory=self.config.memory,
        )


def fewest_samples(
    network: nn.Module, rows: RowReader, samples: SampleSet, size: int, device: torch.device = CPU
) -> tuple[int, tuple[Note, ...]]:
    """Return the fewest samples that a batch may have, and a note where a sample joins another batch.

    BatchNorm in training mode normalises by the batch. Of one sample, whose map is one position, each channel
    has one value, which it cannot normalise. Such a sample joins another batch, so that every sample is
    learnt from.

    Parameters
    ----------
    network : in the mode in which it is trained; it is run on one sample only where a batch may have one.
    rows : by image; only their shape and type count.
    samples : to train on. size : of a batch, as requested.

    Raises
    ------
    FitError
        There is one sample only, or the requested size is 1.
    """
    if len(samples) // batch_count(len(samples), size) > 1 or not _needs_two(network, rows, samples, device):
        return 1, ()
    if len(samples) == 1:
        raise FitError(
            "There is one sample to train on, but BatchNorm in training mode needs two or more in a batch.",
            "Bring more samples.",
        )
    if size == 1:
        raise FitError(
            "batch_size is 1, but BatchNorm in training mode needs two or more values per channel, and one "
            "sample gives it one.",
            "Use --batch-size 2 or more; `finetune` has --batchnorm fixed, too.",
        )
    text = (
        f"Some batches have {counted(size + 1, 'sample')} instead of {size}: BatchNorm in training mode "
        "cannot "
        "normalise the single sample that would be left over. Another --batch-size avoids this."
    )
    return 2, (Note("last-batch-joined", text, True, {"batch_size": size, "largest": size + 1}),)


@torch.no_grad()
def _needs_two(network: nn.Module, rows: RowReader, samples: SampleSet, device: torch.device) -> bool:
    """Whether torch refuses to run the network, as it is trained, on one sample. Its state is restored."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    batch = torch.from_numpy(np.zeros((1, samples.image.shape[1], *rows.shape[1:]), rows.dtype))
    covariates = torch.zeros(1, samples.covariates.shape[1])
    try:
        with torch.random.fork_rng(devices=[]):
            network(batch.to(device), covariates.to(device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return True
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)
    return False


def training_device(config: TrainingConfig) -> torch.device:
    """The device to train on; a CPU is used with all its cores.

    Raises
    ------
    EngineError
        It is not present.
    FitError
        It has no units for the precision.
    """
    use_torch_threads(available_cores())
    device = resolve_device(config.device)
    if config.precision == "bf16" and not trains_in_bf16(device):
        raise FitError(
            f"precision is bf16, but this machine's {device} has no units for bfloat16, and would be slower.",
            "Leave --precision at fp32.",
        )
    return torch.device(device)


@dataclass(frozen=True)
class Pace:
    """Seconds that one sample takes: `training`, forward and backward; `measuring`, forward alone."""

    training: float
    measuring: float

    def seconds(self, epochs: int, train: int, val: int, others: int = 0) -> float:
        """A whole run: the start measured on val, then epochs, then the best one measured on all splits."""
        return self.training * epochs * train + self.measuring * ((epochs + 2) * val + train + others)


def pace(job: TrainingJob[Any]) -> Pace:
    """Time a step of a job's network on zeros, with all parameters trained; they do not change."""
    rows, samples = job.inputs.plain, job.samples["train"]
    shape = (samples.image.shape[1], *rows.shape[1:])
    return pace_of(
        job.network,
        shape,
        rows.dtype,
        samples.covariates.shape[1],
        job.config.batch_size,
        job.device,
        job.config.precision,
    )


def pace_of(
    network: nn.Module,
    shape: tuple[int, ...],
    dtype: np.dtype,
    P: int,
    B: int,
    device: torch.device = CPU,
    precision: str = "fp32",
) -> Pace:
    """Time a step of a network on B samples of zeros. shape : (M, …) of a sample's rows."""
    batch = torch.from_numpy(np.zeros((B, *shape), dtype)).to(device)
    covariates = torch.zeros(B, P, device=device)
    network.train().requires_grad_(True)

    def step() -> None:
        with step_precision(precision, device):
            logits = network(batch, covariates)
        logits.float().sum().backward()
        network.zero_grad(set_to_none=True)

    training = _timed(step)
    network.eval()
    with torch.inference_mode():
        measuring = _timed(lambda: network(batch, covariates))
    return Pace(training / B, measuring / B)


def _timed(call: Callable[[], object]) -> float:
    """Seconds of the second call; in the first, libraries choose their algorithms."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
