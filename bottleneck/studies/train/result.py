"""The result of `train`: the model, what was tried, and the tables that are written beside the model."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.data.source import Source
from bottleneck.errors import Note
from bottleneck.extraction.extract import ExtractResult
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.classifier import Classifier, load_model
from bottleneck.names import SPLITS, TOP_CLASSES
from bottleneck.studies.train.candidates import Candidate
from bottleneck.studies.train.request import Request
from bottleneck.trials.evidence import Step
from bottleneck.trials.task import Task

SHOWN_FAILURES = 100  # named in a note
SHOWN_CLASSES = 10  # named in the text of a note
COLUMNS = ("what", "kind", "backbone", "node", "cv", "val", "pooled", "seconds", "chosen", "earlier")


@dataclass(frozen=True)
class TrainResult:
    """The result of `train`.

    model : path of the model file.
    chosen : the candidate that was chosen, as in `candidates`.
    candidates : one dict per candidate: what kind backbone node cv_accuracy val_accuracy pooled seconds
        chosen. `pooled` is the mean score over the held-out samples of train and those of val. For a
        regression the keys are cv_r2 and val_r2. Where an earlier choice is kept, the others are those of the
        run that made it, and have "earlier": true.
    metric : "accuracy", or "r2" of a regression.
    accuracy, accuracy_ci95 : of the model by split; empty for a regression. It has learnt from train and
        val, so `val` is that of the same candidate fitted on train alone.
    metrics : of the model by split, as `evaluate` reports them.
    cross_validation : of the model's own fit, which is on train and val: each sample judged by a fold's fit
        that had not seen it. The figure `cv_accuracy` of a candidate is of its trial, which had train alone.
    rule : the comparisons that led to the choice, in their order.
    files : paths of what was written, by name. data : the data sheet, as of `extract`.
    seconds : wall time. notes : what was decided.
    """

    model: str
    target: str
    metric: str
    chosen: dict[str, Any]
    candidates: list[dict[str, Any]]
    accuracy: dict[str, float]
    accuracy_ci95: dict[str, list[float]]
    metrics: dict[str, dict[str, Any]]
    rule: list[str]
    samples: dict[str, int]
    images: dict[str, int]
    files: dict[str, str]
    seconds: float
    notes: list[Note] = field(default_factory=list)
    cross_validation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def classifier(self) -> Classifier:
        """The model, opened for prediction."""
        return load_model(self.model)

    def predict(self, *sources: str | Path | Source, top: int = TOP_CLASSES) -> list[dict[str, Any]]:
        """Return the predictions of the model for images, folders or manifests (`Classifier.predict`)."""
        return self.classifier.predict(*sources, top=top)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck train --json`."""
        names = self.__dataclass_fields__
        values = {name: getattr(self, name) for name in names}
        return {**values, "notes": [note.to_json() for note in self.notes]}


def write_tables(model: Path, candidates: list[dict[str, Any]], metric: str) -> dict[str, str]:
    """Write everything that was tried beside the model, as CSV and as JSON lines of one list."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for each in candidates:
        values = {"earlier": False, **each, "cv": each[f"cv_{metric}"], "val": each[f"val_{metric}"]}
        writer.writerow("" if values[name] is None else values[name] for name in COLUMNS)
    table, data = model.with_suffix(".candidates.csv"), model.with_suffix(".candidates.json")
    write_whole(table, buffer.getvalue().encode())
    write_whole(data, json.dumps(candidates, ensure_ascii=False, indent=1).encode())
    return {"table": str(table), "table_json": str(data)}


def result_of(
    request: Request,
    head: HeadArtifact,
    chosen: Candidate,
    rows: list[dict[str, Any]],
    steps: Sequence[Step],
    extracted: dict[str, ExtractResult],
    files: dict[str, str],
    notes: list[Note],
    started: float,
) -> TrainResult:
    """Return the result of a run that began at `started`."""
    metrics = {split: values for split, values in head.metrics.items() if split in SPLITS}
    measured = {split: each for split, each in metrics.items() if "accuracy" in each}
    paths = {f"cache {name}": str(path) for name, path in request.paths.items()}
    return TrainResult(
        model=str(request.model),
        target=head.target,
        metric=chosen.task.metric,
        chosen=next(row for row in rows if row["chosen"]),
        candidates=rows,
        accuracy={split: each["accuracy"] for split, each in measured.items()},
        accuracy_ci95={split: list(each["accuracy_ci95"]) for split, each in measured.items()},
        metrics=metrics,
        rule=[str(step) for step in steps],
        samples={split: len(indices) for split, indices in chosen.task.rows.items()},
        images={
            name: sum(getattr(result, name) for result in extracted.values())
            for name in ("computed", "reused", "failed")
        },
        files={"card": str(request.model.with_suffix(".md")), **files, **paths},
        seconds=time.perf_counter() - started,
        notes=[*notes, *_failures(extracted)],
        cross_validation=head.metrics.get("cv", {}),
        data=extracted[chosen.backbone].data,
    )


def _failures(extracted: Mapping[str, ExtractResult]) -> list[Note]:
    """Return a note on the images that gave no features."""
    failed = {key: why for result in extracted.values() for key, why in result.failures.items()}
    if not failed:
        return []
    first = next(iter(failed))
    text = f"Images that gave no features: {len(failed):,}; the first is {first}: {failed[first]}."
    return [Note("images-failed", text, details={"failures": dict(list(failed.items())[:SHOWN_FAILURES])})]


def split_notes(task: Task) -> list[Note]:
    """Return what a reader must know of the splits that chose and measured."""
    notes = []
    if "val" not in task.rows:
        text = "There is no val split: cross-validation on train alone chose."
        notes.append(Note("chosen-without-val", text))
    else:
        text = (
            "The model has learnt from train and val; its accuracy on val is that of the same candidate "
            "fitted on train alone."
        )
        notes.append(Note("fitted-on-val", text))
    if "test" not in task.rows:
        text = (
            "There is no test split, so nothing confirms the accuracy that chose; set one aside with "
            "--test-fraction 0.2."
        )
        notes.append(Note("no-test", text))
    for split in ("val", "test"):
        names = _absent_classes(task, split)
        if names:
            shown = ", ".join(names[:SHOWN_CLASSES]) + (" …" if len(names) > SHOWN_CLASSES else "")
            text = f"{split} has no sample of {shown}: its accuracy says nothing of them."
            notes.append(Note("classes-not-measured", text, details={"split": split, "classes": names}))
    return notes


def _absent_classes(task: Task, split: str) -> list[str]:
    """Return the classes without a labelled sample in a split that exists."""
    if split not in task.rows or task.target.kind != "class":
        return []
    codes = task.target.values[task.rows[split]]
    there = np.isin(np.arange(len(task.target.class_names)), codes)
    return [name for name, found in zip(task.target.class_names, there, strict=True) if not found]


def copies_notes(task: Task) -> list[Note]:
    """Return a note on images of one split that are, byte by byte, images of another one."""
    digests, samples = task.cache.images.digest, task.samples
    images = {
        split: set(map(bytes, digests[samples.image[rows].ravel()])) for split, rows in task.rows.items()
    }
    shared = {f"{a} and {b}": len(images[a] & images[b]) for a, b in combinations(images, 2)}
    shared = {pair: count for pair, count in shared.items() if count}
    if not shared:
        return []
    told = ", ".join(f"{count:,} in {pair}" for pair, count in shared.items())
    text = (
        f"The same images are in two splits, byte by byte: {told}. What is measured on them is too good. "
        f"`bottleneck audit {quote(str(task.cache.path))}` names them, and those that are nearly the same."
    )
    return [Note("copies-across-splits", text, details={"copies": shared})]


def choice_note(chosen: Candidate, steps: Sequence[Step]) -> Note:
    """Return how the choice came about."""
    told = " ".join(str(step) for step in steps)
    return Note("chosen", f"Chosen: {chosen.what}. {told}".strip(), details={"chosen": chosen.what})
