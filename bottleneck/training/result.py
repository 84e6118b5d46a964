"""What a run of training leaves: which of the candidates is kept, how good it is, and the files.

Shapes: n samples of a split, C classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bottleneck.heads.artifact import HeadArtifact, write_whole
from bottleneck.model_file import save_model
from bottleneck.training.card import model_card
from bottleneck.training.loop import EpochRecord, Training
from bottleneck.training.sets import Sets


@dataclass(frozen=True)
class Result:
    """What `finetune` and `scratch` come to.

    model : path. kept : "finetuned", "head" or, from scratch, "scratch".
    head_accuracy : of the head that training started from, finetuned_accuracy : of the model that is kept; by
        split. The split in `chosen_on` chose the epoch, so its figures are optimistic.
    metrics : of the kept model by split, as `evaluate` reports them.
    epochs : the record of each, from 0, the network as it came; best_epoch : which one is kept.
    stopped : "done", "early" or "diverged"; notes : what a reader of the figures must know.
    max_logit_difference_at_start : from the head's logits, on val.
    images_per_second : images passed per second of training; map_seconds : extraction before it.
    failures : images that could not be read, with the reason.
    """

    model: str
    kept: str
    target: str
    classes: tuple[str, ...]
    unfrozen: tuple[str, ...]
    input: str
    finetuned_accuracy: dict[str, float]
    accuracy_ci95: dict[str, tuple[float, float]]
    head_accuracy: dict[str, float]
    metrics: dict[str, Any]
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    stopped: str
    resumed: bool
    images_per_second: float
    seconds: float
    n: dict[str, int]
    chosen_on: str = "val"
    max_logit_difference_at_start: float | None = None
    map_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        training: Training, sets: Sets, metrics: Mapping[str, Mapping[str, Any]], started: float, **own: Any
    ) -> Result:
        """What a run's loop, samples and metrics come to, beside the fields that are its `own`.

        metrics : of the kept model, by split. started : `time.perf_counter()` at the run's begin.
        """
        state = training.state
        told = {
            "finetuned_accuracy": accuracies(metrics),
            "accuracy_ci95": {split: tuple(values["accuracy_ci95"]) for split, values in metrics.items()},
            "metrics": metrics,
            "epochs": tuple(state.history),
            "best_epoch": state.best_epoch,
            "stopped": state.stopped,
            "resumed": training.resumed,
            "images_per_second": images_per_second(training),
            "seconds": time.perf_counter() - started,
            "n": {split: len(rows) for split, rows in sets.rows.items()},
        }
        return Result(**told | own)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck finetune --json` and `bottleneck scratch --json`."""
        return {**vars(self), "epochs": [asdict(record) for record in self.epochs]}


def notes_on(training: Training, sets: Sets) -> tuple[str, ...]:
    """What a reader of the figures must know, and what to try after a divergence."""
    notes = []
    if training.state.stopped == "diverged":
        lr = training.optimizer.param_groups[0]["base_lr"]
        notes.append(
            f"The loss diverged in epoch {training.state.epoch} at learning rate {lr:g}; "
            f"the best epoch before is kept. Try --lr {lr / 10:g}, or --find-lr."
        )
    if sets.carved:
        notes.append("There was no val split: a part of train became it, and nothing was fitted on that.")
    others = "" if "test" in sets.rows else ", and there is no test split to confirm it"
    notes.append(f"The val split chose the epoch, so accuracies on it are optimistic{others}.")
    return tuple(notes)


def images_per_second(training: Training) -> float:
    """Images passed per second of training, reading included."""
    records = training.state.history
    seconds = sum(record.seconds for record in records)
    images = sum(record.samples for record in records) * training.train.samples.image.shape[1]
    return images / seconds if seconds else 0.0


def accuracies(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy by split."""
    return {split: values["accuracy"] for split, values in metrics.items()}


def write_files(
    path: Path,
    head: HeadArtifact,
    state: Mapping[str, Any],
    result: Result,
    settings: Mapping[str, Any],
) -> None:
    """The model, its card and its history.

    state : of the network, empty where it is the recipe's own. settings : of the run, for the card.
    """
    shown = {
        "kept": result.kept,
        "trained blocks": ", ".join(result.unfrozen) or "none",
        "fed with": result.input,
        "samples": ", ".join(f"{count:,} {split}" for split, count in result.n.items()),
        "epochs": f"{len(result.epochs) - 1}, the best was {result.best_epoch}",
        **settings,
    }
    history = json.dumps({**result.to_json(), "settings": dict(settings)}, ensure_ascii=False, indent=1)
    write_whole(history_path(path), history.encode())
    save_model(path, head, state, model_card(head, path.name, shown, result.notes))


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a run and of its parts in one table, those left at nothing omitted."""
    values = asdict(config)
    run = values.pop("run")
    optim = run.pop("optim")
    return {name: value for name, value in {**values, **run, **optim}.items() if value not in (None, "")}


def history_path(model: Path) -> Path:
    """Where the epochs of a model's training are kept as JSON."""
    return model.with_suffix(".history.json")
