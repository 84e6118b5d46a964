"""The result of `train`: the model, what was tried, and the tables that are written beside the model."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bottleneck.data.source import Source
from bottleneck.errors import Note
from bottleneck.files import write_whole
from bottleneck.models.classifier import Classifier, load_model
from bottleneck.names import TOP_CLASSES

if TYPE_CHECKING:
    from bottleneck.trials.evidence import Step

COLUMNS = ("what", "kind", "backbone", "node", "cv", "val", "pooled", "seconds", "chosen")


@dataclass(frozen=True)
class TrainResult:
    """The result of `train`.

    model : path of the model file.
    chosen : the candidate that was chosen, as in `candidates`.
    candidates : one dict per candidate: what kind backbone node cv_accuracy val_accuracy pooled seconds
        chosen. `pooled` is the mean score over the held-out samples of train and those of val. For a
        regression the keys are cv_r2 and val_r2.
    metric : "accuracy", or "r2" of a regression.
    accuracy, accuracy_ci95 : of the model by split; empty for a regression. It has learnt from train and
        val, so `val` is that of the same candidate fitted on train alone.
    metrics : of the model by split, as `evaluate` reports them.
    rule : the comparisons that led to the choice, in their order.
    files : paths of what was written, by name.
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


def steps_json(steps: list[Step]) -> list[str]:
    """Return the comparisons as sentences."""
    return [str(step) for step in steps]


def write_tables(model: Path, candidates: list[dict[str, Any]], metric: str) -> dict[str, str]:
    """Write everything that was tried beside the model, as CSV and as JSON lines of one list."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for each in candidates:
        values = {**each, "cv": each[f"cv_{metric}"], "val": each[f"val_{metric}"]}
        writer.writerow("" if values[name] is None else values[name] for name in COLUMNS)
    table, data = model.with_suffix(".candidates.csv"), model.with_suffix(".candidates.json")
    write_whole(table, buffer.getvalue().encode())
    write_whole(data, json.dumps(candidates, ensure_ascii=False, indent=1).encode())
    return {"table": str(table), "table_json": str(data)}
