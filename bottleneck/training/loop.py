"""The one epoch loop: every network of this package that is trained, is trained here.

    measure val ──► epoch: batches ──► loss ──► backward ──► step ──► measure val ──► best so far? keep ──► …

The network as it came is measured first, as epoch 0, and is a candidate like every later epoch. The best
epoch has the highest accuracy on val; among equals, the lowest log loss at its best temperature. A run that
was killed continues from its last checkpoint to the bit-identical result (on a CPU, with the same number of
threads).

Shapes: B samples of a batch, L logits.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import WorkerPool
from bottleneck.training.batches import Batch, Batches
from bottleneck.training.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
    without_prefix,
)
from bottleneck.training.loss import Measured, Objective, logits_of, measure, predicted
from bottleneck.training.optim import Schedule, learning_rates, unfreeze

# Training has diverged where the mean loss of an epoch, after so many steps, is so many times that of
# guessing.
DIVERGED_LOSS, DIVERGED_STEPS = 3.0, 50
CPU = torch.device("cpu")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch; the one numbered 0 is the network as it came.

    lr : the head's at the last step. learning_rates : at that step, of each layer group by its name; 0 where
        it is not trained yet.
    train_loss, train_accuracy : means over the epoch, while weights moved.
    samples, seconds : passed through the network in training, and the time that took, with reading of rows
        but without measuring and without writing of checkpoints.
    """

    epoch: int
    lr: float | None
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    samples: int
    seconds: float
    learning_rates: dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """The state of a run. `stopped`: "" while it is going on, then "done", "early" or "diverged"."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0  # sums over the current epoch's samples so far
    correct: int = 0
    samples: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best: Measured | None = None
    best_epoch: int = 0
    stopped: str = ""

    @staticmethod
    def from_json(values: dict[str, Any]) -> State:
        """The state whose `asdict` is `values`."""
        history = [EpochRecord(**record) for record in values["history"]]
        return State(**{**values, "history": history, "best": Measured(**values["best"])})


@dataclass
class Training:
    """One run of the loop: `run` trains, and then the module has the parameters of the best epoch.

    Parameters
    ----------
    module : nn.Module
        Called with rows and covariates of a batch, returns logits (B, L).
    objective : Objective
    optimizer : torch.optim.Optimizer
        With the groups that `parameter_groups` makes.
    schedule : Schedule
    train, val : Batches
    epochs : int
    patience : int
        Epochs without a better one after which to stop; 0 never stops early.
    clip : float
        Greatest norm of the gradient; 0 for any.
    device : torch.device
    choose_best : bool
        False leaves the parameters of the last epoch in the module.
    precision : {"fp32", "bf16"}
        Of the forward and backward passes of a step; val is measured in float32.
    by_sample : bool
        Whether a sample's logits depend neither on the others of its batch nor on random numbers. In bfloat16
        on a CPU a batch is then split among threads (`_in_parts`).
    checkpoint : Checkpoint, optional
    checkpoint_seconds : float
        Least time between two checkpoints.

    Attributes
    ----------
    state : State
    resumed : bool
        Whether the run continued from a checkpoint.
    """

    module: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: Batches
    val: Batches
    epochs: int
    patience: int = 0
    clip: float = 0.0
    device: torch.device = CPU
    choose_best: bool = True
    precision: str = "fp32"
    by_sample: bool = False
    checkpoint: Checkpoint | None = None
    checkpoint_seconds: float = 15.0
    state: State = field(default_factory=State, init=False)
    resumed: bool = field(default=False, init=False)
    _best_tensors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _saved_at: float = field(default=0.0, init=False, repr=False)
    _pool: WorkerPool | None = field(default=None, init=False, repr=False)

    @property
    def best(self) -> Measured:
        """The best epoch's measurement on val."""
        assert self.state.best is not None, "the run has measured nothing yet"
        return self.state.best

    def run(self, reporter: Reporter = SILENT) -> list[EpochRecord]:
        """Train to the end and return the epochs; each is reported as it ends, resumed ones at once."""
        self.train.preload()  # so that the first epoch's time does not contain it
        self._saved_at = time.monotonic()
        if self.by_sample and self.precision == "bf16" and self.device.type == "cpu":
            self._pool = WorkerPool(self.device.type)
        self._restore()
        for record in self.state.history:
            reporter.epoch(record)
        if not self.state.history:
            reporter.epoch(self._measure(None))
            self.state.epoch = 1
        while not self.state.stopped:
            self._save()
            self._train_epoch(reporter)
            if not self.state.stopped:
                rates = learning_rates(self.optimizer, self.state.epoch)
                reporter.epoch(self._measure(self.optimizer.param_groups[0]["lr"], rates))
                self._next_epoch()
        if self.choose_best:
            self.module.load_state_dict(self._best_tensors)
        return self.state.history

    def _train_epoch(self, reporter: Reporter) -> None:
        """Do the remaining steps of the epoch."""
        state = self.state
        unfreeze(self.optimizer, state.epoch)
        steps = reporter.step(self._title(), len(self.train), "samples")
        with steps as advance, self._pool or nullcontext():
            advance(state.samples)
            started = time.perf_counter()
            for batch in self.train.epoch(state.epoch, state.step):
                self.schedule.apply(self.optimizer, (state.epoch - 1) * self.train.steps + state.step)
                loss, correct = self.update(batch)
                state.seconds += time.perf_counter() - started
                state.step += 1
                state.loss += loss * len(batch)
                state.correct += correct
                state.samples += len(batch)
                advance(len(batch))
                if self._diverges(loss):
                    state.stopped = "diverged"
                    break
                self._save()
                started = time.perf_counter()

    def update(self, batch: Batch) -> tuple[float, int]:
        """Do one step; return the batch's loss and how many of its samples were classified correctly."""
        batch = batch.to(self.device)
        self.optimizer.zero_grad()
        if self._pool is not None:
            logits, loss = self._in_parts(batch, self._pool)
        else:
            logits = self._logits(batch.rows, batch.covariates)
            loss = self.objective.loss(logits, batch.labels)
            loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self._parameters(), self.clip)
        self.optimizer.step()
        return loss.item(), int((predicted(logits) == batch.labels).sum())

    def _logits(self, rows: Tensor, covariates: Tensor) -> Tensor:
        with step_precision(self.precision, self.device):
            logits: Tensor = self.module(rows, covariates).float()
        return logits

    def _in_parts(self, batch: Batch, pool: WorkerPool) -> tuple[Tensor, Tensor]:
        """Set the gradients of a batch, of which each thread computes a part; return its logits and loss.

        oneDNN's convolutions in bfloat16 spin at barriers of their own, which no setting ends: beside other
        programs two threads of torch took 1.6 times the processor time of one. Here no two threads share a
        convolution. Gradients are summed in the order of the parts.
        """
        parts = ((batch.rows[part], batch.covariates[part]) for part in pool.shares(len(batch)))
        outputs = list(pool.run(self._logits, parts))
        logits = torch.cat([output.detach() for output in outputs]).requires_grad_()
        loss = self.objective.loss(logits, batch.labels)
        (slope,) = torch.autograd.grad(loss, logits)
        parameters = [parameter for parameter in self._parameters() if parameter.requires_grad]

        def gradients(output: Tensor, slope: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, parameters, slope, allow_unused=True)

        slopes = slope.split([len(output) for output in outputs])
        for part in pool.run(gradients, zip(outputs, slopes, strict=True)):
            for parameter, gradient in zip(parameters, part, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad.add_(gradient)
                elif gradient is not None:  # a copy: parameters that are added up have one tensor together
                    parameter.grad = gradient.clone()
        return logits.detach(), loss.detach()

    def _diverges(self, loss: float) -> bool:
        """Whether the last loss is not finite, or the epoch's mean so far exceeds the bound."""
        state = self.state
        if not math.isfinite(loss):
            return True
        bound = DIVERGED_LOSS * max(self.objective.chance, state.history[0].val_loss)
        judged = state.step >= min(DIVERGED_STEPS, self.train.steps)
        return judged and state.loss / state.samples > bound

    def _measure(self, lr: float | None, rates: dict[str, float] | None = None) -> EpochRecord:
        """End the current epoch: measure val, copy the parameters if they are the best so far."""
        state = self.state
        measured = measure(*logits_of(self.module, self.val, self.device), self.objective)
        if state.best is None or measured.beats(state.best):
            state.best, state.best_epoch = measured, state.epoch
            self._best_tensors = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        record = EpochRecord(
            epoch=state.epoch,
            lr=lr,
            train_loss=state.loss / state.samples if state.samples else None,
            train_accuracy=state.correct / state.samples if state.samples else None,
            val_loss=measured.loss,
            val_accuracy=measured.accuracy,
            samples=state.samples,
            seconds=state.seconds,
            learning_rates=rates or {},
        )
        state.history.append(record)
        return record

    def _next_epoch(self) -> None:
        state = self.state
        if state.epoch >= self.epochs:
            state.stopped = "done"
        elif self.patience and state.epoch - state.best_epoch >= self.patience:
            state.stopped = "early"
        state.epoch += 1
        state.step, state.loss, state.correct, state.samples, state.seconds = 0, 0.0, 0, 0, 0.0

    def _save(self) -> None:
        if self.checkpoint is None or time.monotonic() - self._saved_at < self.checkpoint_seconds:
            return
        tensors = {
            **with_prefix("module", self.module.state_dict()),
            **with_prefix("best", self._best_tensors),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            **with_prefix("random", _random_states(self.device)),
        }
        self.checkpoint.save(tensors, asdict(self.state))
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        loaded = self.checkpoint.load() if self.checkpoint else None
        if loaded is None:
            return
        tensors, values = loaded
        self.state, self.resumed = State.from_json(values), True
        self.module.load_state_dict(without_prefix("module", tensors))
        self._best_tensors = without_prefix("best", tensors)
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        _set_random_states(without_prefix("random", tensors))

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _title(self) -> str:
        """Title of the progress bar: the epoch, and the figures of the last one."""
        last = self.state.history[-1]
        shown = f"val {last.val_accuracy:.4f}"
        if last.train_loss is not None:
            shown = f"loss {last.train_loss:.4f}, {shown}"
        return f"Epoch {self.state.epoch}/{self.epochs} ({shown})"


def step_precision(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which the forward pass of a step is computed.

    Weights are not kept in bfloat16 for a second use: there is none, and threads would share them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
