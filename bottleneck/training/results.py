"""The result of a training run: which network or head is kept, its metrics, and the files.

model.safetensors     the head and, where it was trained, the network
model.md              the model card, after Mitchell et al. 2019, "Model Cards for Model Reporting"
model.history.json    the result with its epochs, and the settings
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.inspect import layer_texts
from bottleneck.backbones.model_file import save_model
from bottleneck.errors import Note, distinct, refuse_strict
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.kept_aside import kept_aside
from bottleneck.heads.metrics import one_answer_notes
from bottleneck.training.job import TrainingJob
from bottleneck.training.labelled_splits import LabelledSplits
from bottleneck.training.loop import EpochRecord, Training
from bottleneck.training.loss import Measured
from bottleneck.training.network import TransferNetwork, folded
from bottleneck.training.optim import group_records

MOST_CLASSES_LISTED = 50
PIXELS = "pixels"  # the input of a network that has no cached feature map


@dataclass(frozen=True)
class TrainingResult:
    """The result of `finetune` and `scratch`.

    model : path. kept : "finetuned", "head" or, from scratch, "scratch".
    head_accuracy : of the head that training started from, finetuned_accuracy : of the model that is kept; by
        split. The split in `chosen_on` chose the epoch, so its figures are optimistic.
    metrics : of the kept model by split, as `evaluate` reports them.
    epochs : the record of each, from 0, the network as it came; best_epoch : which one is kept.
    stopped : "done", "early" or "diverged"; notes : what a reader of the figures must know.
    max_logit_difference_at_start : from the head's logits, on val.
    images_per_second : images passed per second of training; map_seconds : extraction before it.
    failures : images that could not be read, with the reason. data : samples by split and class, targets,
    columns (`extraction.data_sheet`).
    groups : of the optimizer, each with name, learning_rate (its greatest), weight_decay, parameters and
    start_epoch; `epochs` has the rate of each at the end of the epoch.
    parameters : number of them in network and classifier. classifier : its layers.
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
    notes: tuple[Note, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    groups: tuple[dict[str, Any], ...] = ()
    parameters: int = 0
    classifier: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck finetune --json` and `bottleneck scratch --json`."""
        notes = [note.to_json() for note in self.notes]
        return {**vars(self), "epochs": [asdict(record) for record in self.epochs], "notes": notes}


@dataclass(frozen=True)
class ModelDraft:
    """The model that a job trains: everything that is known of it before it is trained.

    path : of the model file
    kind : `TrainingResult.kept` where the trained network is kept: "finetuned" or "scratch"
    head : describes the classifier; its arrays are replaced by the trained ones
    unfrozen : names of the trained blocks, the uppermost first
    input : the node whose map the network is fed with, or "pixels"
    """

    path: Path
    kind: str
    head: HeadArtifact
    backbone: Backbone
    splits: LabelledSplits
    unfrozen: tuple[str, ...]
    input: str
    map_seconds: float = 0.0
    difference_at_start: float | None = None
    notes: tuple[Note, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fallback:
    """The head that training started from: the model where no epoch of training is better on val.

    head : to be written then. tensors : of the network, empty where the recipe alone gives it.
    measured : on val. metrics : by split.
    """

    head: HeadArtifact
    tensors: Mapping[str, Tensor]
    measured: Measured
    metrics: dict[str, dict[str, Any]]


def conclude(
    job: TrainingJob[TransferNetwork],
    draft: ModelDraft,
    started: float,
    fallback: Fallback | None = None,
    strict: bool = False,
) -> TrainingResult:
    """Choose between the trained network and the fallback on val, measure the choice and write its files.

    started : `time.perf_counter()` at the beginning of the run. strict : raise StrictError, before a file is
    written, where a note changes the result.
    """
    training, state = job.training, job.training.state
    tensors: Mapping[str, Tensor]
    if fallback and not (state.best_epoch > 0 and training.best.beats(fallback.measured)):
        kept, metrics, tensors = "head", fallback.metrics, fallback.tensors
        head = replace(fallback.head, settings={**fallback.head.settings, "chosen_on": ["val"]})
    else:
        kept, metrics, tensors = draft.kind, job.metrics(draft.head.class_names), _used_state(draft)
        head = _trained_head(draft, job, metrics)
    told = [note for split in metrics for note in one_answer_notes("The model", split, metrics[split])]
    notes = distinct([*draft.notes, *job.notes, *job.row_notes(), *told, *_notes(training, draft, kept)])
    refuse_strict(notes, strict)
    notes += kept_aside(draft.path, head)
    result = TrainingResult(
        model=str(draft.path),
        kept=kept,
        target=draft.head.target,
        classes=draft.head.class_names,
        unfrozen=draft.unfrozen,
        input=draft.input,
        finetuned_accuracy=accuracies(metrics),
        accuracy_ci95={split: tuple(values["accuracy_ci95"]) for split, values in metrics.items()},
        head_accuracy=accuracies(fallback.metrics) if fallback else {},
        metrics=metrics,
        epochs=tuple(state.history),
        best_epoch=0 if kept == "head" else state.best_epoch,
        stopped=state.stopped,
        resumed=training.resumed,
        images_per_second=_images_per_second(training),
        seconds=time.perf_counter() - started,
        n=draft.splits.counts(),
        max_logit_difference_at_start=draft.difference_at_start,
        map_seconds=draft.map_seconds,
        notes=tuple(notes),
        failures=dict(draft.failures),
        data=draft.data,
        groups=tuple(group_records(training.optimizer)),
        parameters=_parameters(draft, job.network),
        classifier=layer_texts(job.network.classifier),
    )
    settings = job.config.shown()
    history = json.dumps({**result.to_json(), "settings": settings}, ensure_ascii=False, indent=1)
    write_whole(draft.path.with_suffix(".history.json"), history.encode())
    card = model_card(head, draft.path.name, _table_of(result, settings), result.notes)
    save_model(draft.path, head, tensors, card)
    return result


def accuracies(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy by split."""
    return {split: values["accuracy"] for split, values in metrics.items()}


def _parameters(draft: ModelDraft, network: TransferNetwork) -> int:
    """Number of parameters of the network up to its features and of the classifier on them."""
    used = _used_state(draft)
    sizes = [value.numel() for name, value in draft.backbone.module.named_parameters() if name in used]
    return sum(sizes) + sum(value.numel() for value in network.classifier.parameters())


def _used_state(draft: ModelDraft) -> dict[str, Tensor]:
    """The state of the network without the classifier above the features, which the head replaces."""
    unused = draft.backbone.entries_above(draft.head.node.partition("@")[0])
    return {name: value for name, value in draft.backbone.module.state_dict().items() if name not in unused}


def _trained_head(
    draft: ModelDraft, job: TrainingJob[TransferNetwork], metrics: dict[str, Any]
) -> HeadArtifact:
    """The trained classifier as a head on the trained network's features. Val chose it."""
    return replace(
        draft.head,
        novelty=None,  # features and logits of the trained network are others
        conformal=None,
        arrays=folded(job.network, draft.head.scale),
        link="softmax",
        temperature=job.training.best.temperature,
        settings={**draft.head.settings, "chosen_on": ["val"]},
        node_fingerprint="",  # no cache has features of this network
        computed={},
        cv={},
        n_train=len(draft.splits.rows["train"]),
        metrics=metrics,
    )


def _notes(training: Training, draft: ModelDraft, kept: str) -> list[Note]:
    """What a reader of the figures must know, and what to try after a divergence."""
    notes: list[Note] = []
    if training.resumed:
        text = "The run continued from the checkpoint of an earlier one with the same settings and data."
        notes.append(Note("run-resumed", text))
    if training.state.stopped == "diverged":
        lr, epoch = training.optimizer.param_groups[0]["base_lr"], training.state.epoch
        text = (
            f"The loss diverged in epoch {epoch} at learning rate {lr:g}; "
            f"the best epoch before is kept. Try --lr {lr / 10:g}, or --find-lr."
        )
        notes.append(Note("loss-diverged", text, True, {"epoch": epoch, "lr": lr}))
    if kept == "head":
        notes.append(
            Note("head-kept", "No epoch of training was better on val than the head, so it is kept.")
        )
    others = "" if "test" in draft.splits.rows else ", and there is no test split to confirm it"
    text = f"The val split chose the epoch, so accuracies on it are optimistic{others}."
    notes.append(Note("val-chose-the-epoch", text))
    return notes


def _images_per_second(training: Training) -> float:
    """Images passed per second of training, with the reading of their rows; an epoch that diverged counts."""
    state = training.state
    seconds = state.seconds + sum(record.seconds for record in state.history)
    samples = state.samples + sum(record.samples for record in state.history)
    return samples * training.train.samples.image.shape[1] / seconds if seconds else 0.0


def _table_of(result: TrainingResult, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the card shows of the training."""
    return {
        "kept": result.kept,
        "trained blocks": ", ".join(result.unfrozen) or "none",
        "fed with": result.input,
        "samples": ", ".join(f"{count:,} {split}" for split, count in result.n.items()),
        "epochs": f"{len(result.epochs) - 1}, the best was {result.best_epoch}",
        **settings,
    }


def model_card(
    head: HeadArtifact, file_name: str, training: Mapping[str, Any], notes: tuple[Note, ...] = ()
) -> str:
    """What a model is, what it was made from and how good it is, in Markdown.

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
    network = [
        *((f"backbone {name}", value) for name, value in head.backbone.items()),
        *((f"image {name}", value) for name, value in head.preprocess.items()),
        ("features", head.node),
        ("temperature", f"{head.temperature:.4g}"),
        ("fingerprint of the cache", head.fingerprint),
        ("made with", f"bottleneck {head.version}"),
    ]
    parts = [
        f"# {file_name}",
        f"Classifies {inputs} by `{_cell(head.target)}` into {len(head.class_names)} classes.",
        "## Classes\n\n" + ", ".join(names),
        "## Use\n\n```sh\n" + f"bottleneck predict {quote(file_name)} IMAGES\n```",
        "## How good it is\n\n" + _metrics_table(head),
        *(f"> {note}" for note in notes),
        "## Training\n\n" + _table(("what", "value"), training.items()),
        "## Network and preprocessing\n\n" + _table(("what", "value"), network),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics_table(head: HeadArtifact) -> str:
    rows = []
    for split, values in head.metrics.items():
        if not {"accuracy", "accuracy_ci95", "n", "log_loss"} <= values.keys():
            continue
        low, high = values["accuracy_ci95"]
        rows.append(
            (
                f"{split} (chose the model)"
                if split in head.settings.get("chosen_on", ())
                else {"cv": "cross-validation"}.get(split, split),
                values["n"],
                f"{values['accuracy']:.4f}",
                f"{low:.4f} … {high:.4f}",
                f"{values['log_loss']:.4f}",
            )
        )
    return _table(("split", "samples", "accuracy", "95 % interval", "log loss"), rows)


def _table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that cannot break out of a table or a line."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
