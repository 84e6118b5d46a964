"""What a run of training leaves: which of the candidates is kept, how good it is, and the files.

Shapes: n samples of a split, C classes.

The model card: what a model is, what it was made from and how good it is, in Markdown.

The sections follow Mitchell et al. 2019, "Model Cards for Model Reporting", as far as this program knows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from bottleneck.backbones.model_file import save_model
from bottleneck.errors import Note
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.training.loop import EpochRecord, Training
from bottleneck.training.split_rows import Sets

MOST_CLASSES_LISTED = 50


def model_card(
    head: HeadArtifact, file_name: str, training: Mapping[str, Any], notes: tuple[str | Note, ...] = ()
) -> str:
    """Markdown text.

    Parameters
    ----------
    head : with metrics by split
    file_name : of the model
    training : what was done, shown as a table
    notes : what a reader must know of the figures
    """
    names = [f"`{_cell(name)}`" for name in head.class_names[:MOST_CLASSES_LISTED]]
    if len(head.class_names) > MOST_CLASSES_LISTED:
        names.append(f"… {len(head.class_names) - MOST_CLASSES_LISTED} more")
    M = head.images_per_sample
    inputs = "images" if M == 1 else f"samples of {M} images"
    if head.covariate_names:
        inputs += f" with the numbers {', '.join(f'`{_cell(name)}`' for name in head.covariate_names)}"
    preprocess = head.preprocess
    parts = [
        f"# {file_name}",
        f"Classifies {inputs} by `{_cell(head.target)}` into {len(head.class_names)} classes.",
        "## Classes\n\n" + ", ".join(names),
        "## Use\n\n```sh\n" + f"bottleneck predict {quote(file_name)} IMAGES\n```",
        "## How good it is\n\n" + _metrics(head),
        *(f"> {note}" for note in notes),
        "## Training\n\n" + _table(("what", "value"), training.items()),
        "## Network and preprocessing\n\n"
        + _table(
            ("what", "value"),
            [
                *((f"backbone {name}", value) for name, value in head.backbone.items()),
                *((f"image {name}", value) for name, value in preprocess.items()),
                ("features", head.node),
                ("temperature", f"{head.temperature:.4g}"),
                ("fingerprint of the cache", head.fingerprint),
                ("made with", f"bottleneck {head.version}"),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(head: HeadArtifact) -> str:
    rows = []
    for split, values in head.metrics.items():
        if "accuracy" not in values:
            continue
        low, high = values["accuracy_ci95"]
        rows.append(
            (
                f"{split} (chose the model)" if split in head.settings.get("chosen_on", ()) else split,
                values["n"],
                f"{values['accuracy']:.4f}",
                f"{low:.4f} … {high:.4f}",
                f"{values['log_loss']:.4f}",
            )
        )
    return _table(("split", "samples", "accuracy", "95 % interval", "log loss"), rows)


def _table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that cannot break out of a table or a line."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


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
    notes: tuple[str | Note, ...] = ()
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
        notes = [note.to_json() if isinstance(note, Note) else note for note in self.notes]
        return {**vars(self), "epochs": [asdict(record) for record in self.epochs], "notes": notes}


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
