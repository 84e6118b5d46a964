"""The one epoch loop: every network of this package that trains, trains here.

    measure val ──► epoch: batches ──► loss ──► backward ──► step ──► measure val ──► better? keep ──► …

The network as it came is measured first, as epoch 0, and is a candidate like every later epoch. What counts
is the accuracy on val; among equals, the log loss at the best temperature. After a kill the loop goes on from
its last checkpoint to the bit-identical result (on a CPU, with the same number of threads).

Shapes: B samples of a batch, K logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from bottleneck.progress import SILENT, Reporter
from bottleneck.training.batches import Batch, Batches
from bottleneck.training.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
    without_prefix,
)
from bottleneck.training.loss import Measured, Objective, logits_of, measure, predicted
from bottleneck.training.optim import Schedule, unfreeze

# An epoch's mean loss of so many times that of guessing does not come back; it is judged after so many steps.
DIVERGED_LOSS, DIVERGED_STEPS = 3.0, 50
CPU = torch.device("cpu")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch; the one numbered 0 is the network as it came.

    lr : the head's at the last step. train_loss, train_accuracy : means over the epoch, while weights moved.
    samples, seconds : passed through the network in training, and the time that took, reading included.
    """

    epoch: int
    lr: float | None
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    samples: int
    seconds: float


@dataclass
class State:
    """Where a run stands. `stopped`: "" while it goes on, then "done", "early" or "diverged"."""

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
    def from_json(values: dict) -> State:
        """The state whose `asdict` is `values`."""
        history = [EpochRecord(**record) for record in values["history"]]
        return State(**{**values, "history": history, "best": Measured(**values["best"])})


@dataclass
class Training:
    """One run: `records()` trains, epoch by epoch; then the module holds the best epoch's parameters.

    Parameters
    ----------
    module : nn.Module
        Called with rows and covariates of a batch, gives logits (B, K).
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
    checkpoint : Checkpoint, optional
    checkpoint_seconds : float
        Least time between two checkpoints.
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
    checkpoint: Checkpoint | None = None
    checkpoint_seconds: float = 15.0
    device: torch.device = CPU
    state: State = field(default_factory=State)
    resumed: bool = False

    def records(self, reporter: Reporter = SILENT) -> Iterator[EpochRecord]:
        """Train and yield each epoch as it ends; first those that an earlier, killed run has done."""
        self._saved_at = time.monotonic()
        self._restore()
        yield from list(self.state.history)
        if not self.state.history:
            yield self._measure(None)
            self.state.epoch = 1
        while not self.state.stopped:
            self._save()
            lr = self._train_epoch(reporter)
            if self.state.stopped != "diverged":
                yield self._measure(lr)
                self._next_epoch()
        self.module.load_state_dict(self._best_tensors)

    def _train_epoch(self, reporter: Reporter) -> float | None:
        """Do the steps of the epoch that are left; returns the head's last learning rate."""
        state = self.state
        unfreeze(self.optimizer, state.epoch)
        with reporter.step(self._title(), len(self.train), "samples") as advance:
            advance(state.samples)
            started = time.perf_counter()
            for batch in self.train.epoch(state.epoch, state.step):
                self.schedule.apply(self.optimizer, (state.epoch - 1) * self.train.steps + state.step)
                loss, correct = self.update(batch)
                now = time.perf_counter()
                state.seconds, started = state.seconds + now - started, now
                state.step += 1
                state.loss += loss * len(batch)
                state.correct += correct
                state.samples += len(batch)
                advance(len(batch))
                if self._diverges(loss):
                    state.stopped = "diverged"
                    break
                self._save()
        return self.optimizer.param_groups[0]["lr"]

    def update(self, batch: Batch) -> tuple[float, int]:
        """One step; returns the batch's loss and how many of it were right."""
        batch = batch.to(self.device)
        logits = self.module(batch.rows, batch.covariates)
        loss = self.objective.loss(logits, batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self._parameters(), self.clip)
        self.optimizer.step()
        return loss.item(), int((predicted(logits) == batch.labels).sum())

    def _diverges(self, loss: float) -> bool:
        """Whether the last loss is not finite, or the epoch's mean so far is beyond hope."""
        state = self.state
        if not math.isfinite(loss):
            return True
        bound = DIVERGED_LOSS * max(self.objective.chance, state.history[0].val_loss)
        judged = state.step >= min(DIVERGED_STEPS, self.train.steps)
        return judged and state.loss / state.samples > bound

    def _measure(self, lr: float | None) -> EpochRecord:
        """Close the current epoch: measure val, keep the parameters where they are the best so far."""
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
        found = self.checkpoint.load() if self.checkpoint else None
        if found is None:
            return
        tensors, values = found
        self.state, self.resumed = State.from_json(values), True
        self.module.load_state_dict(without_prefix("module", tensors))
        self._best_tensors = without_prefix("best", tensors)
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        _set_random_states(without_prefix("random", tensors))

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _title(self) -> str:
        """What the progress bar says: the epoch, and how the last one went."""
        last = self.state.history[-1]
        shown = f"val {last.val_accuracy:.4f}"
        if last.train_loss is not None:
            shown = f"loss {last.train_loss:.4f}, {shown}"
        return f"Epoch {self.state.epoch}/{self.epochs} ({shown})"


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
