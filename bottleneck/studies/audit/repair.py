"""Write suggested labels, and measure on test what other labels bring."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.config import LabelConfig
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import FitError, Note, counted, listed, quoted, verb
from bottleneck.files import write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.progress import Reporter
from bottleneck.samples import Target
from bottleneck.studies.audit.judged import Judged
from bottleneck.studies.audit.label_errors import LabelQuality
from bottleneck.trials.evidence import difference
from bottleneck.trials.heads import artifact_of, evidence_of, fit_on, outputs_of
from bottleneck.trials.task import Task


def require_classes(target: Target) -> None:
    """Raise FitError unless `write_fix` can write the labels of a target."""
    if target.kind != "class":
        raise FitError("--fix writes one class a sample; a multi-label target has several labels.")


def write_fix(judged: Judged, quality: LabelQuality, path: Path) -> str:
    """Write every labelled sample with its label, or the suggested one where it is flagged; flagged first.

    Samples that are not judged come last.
    """
    answers, samples = judged.answers, judged.task.samples
    require_classes(answers)
    labels = np.where(quality.flag, quality.suggested, answers.values)
    order = np.lexsort((quality.score, ~quality.flag))
    rows = [(samples.key[judged.rows[i]], answers.class_names[labels[i]]) for i in order]
    given = judged.task.cache.samples.targets[answers.name]  # with the classes that train lacks
    unjudged = np.setdiff1d(np.flatnonzero(given.labelled), judged.rows)
    rows += [(samples.key[row], given.class_names[given.values[row]]) for row in unjudged]
    lines = csv_lines([("sample", answers.name), *rows], raw=True)
    write_whole(path, "".join(lines).encode())
    return str(path)


@dataclass(frozen=True)
class Relabelled:
    """A task with the labels of a file: as the cache has them (`old`), and as the file does (`new`)."""

    file: str
    old: Task
    new: Task
    notes: tuple[Note, ...]


def relabelled_task(task: Task, labels: str | os.PathLike[str]) -> Relabelled:
    """Read a labels file for a task. Raises FitError where a head on its labels could not be compared."""
    name = task.target.name
    # As the cache has them: names of classes may be numbers or contain a separator.
    separator = next(iter(task.samples.columns.get("separator", ())), None)
    kind = LabelConfig(classes=(name,) if task.target.kind == "class" else (), label_separator=separator)
    samples, notes = relabelled(task.samples, task.cache.images.key, labels, targets=(name,), config=kind)
    new = samples.targets[name]
    if new.kind != task.target.kind:
        raise FitError(
            f"{labels} makes {name!r} a {new.kind} target; the cache has a {task.target.kind} one."
        )
    known = {*task.cache.samples.targets[name].class_names, *task.target.class_names}
    if unknown := sorted(set(new.class_names) - known):
        raise FitError(f"{labels} has classes that the cache lacks: {listed(unknown)}.")
    if "test" not in task.rows:
        raise FitError(
            "There is no test split, on which a repair could be measured.",
            f"Set one aside, which computes no image: {task.cache.extract_command('--test-fraction 0.2')}",
        )
    values = _values_of(new, task.target)
    if new.kind == "class":
        in_train = np.isin(new.class_names, task.target.class_names)[new.values]
        kept = np.flatnonzero(new.labelled & task.target.labelled & ~in_train)
        if len(kept):
            names = [new.class_names[code] for code in np.unique(new.values[kept])]
            text = (
                f"{counted(len(kept), 'label')} of {labels} {verb(len(kept))} of {quoted(names)}, of which "
                f"train has no sample: {verb(len(kept), 'this sample keeps', 'these samples keep')} the "
                "label of the cache."
            )
            details = {"target": name, "classes": names}
            notes.append(Note("classes-without-training-samples", text, True, details))
    new_task = replace(task, target=replace(task.target, values=values))
    return Relabelled(str(labels), task, new_task, tuple(notes))


def _values_of(new: Target, old: Target) -> np.ndarray:
    """Return the values of `new` in the classes of `old`, and those of `old` where it has none of these."""
    names = list(old.class_names)
    codes = np.array([names.index(each) if each in names else -1 for each in new.class_names], np.int64)
    named, values = new.labelled, old.values.copy()
    if new.kind == "class":
        there = named & (codes[new.values] >= 0)
        values[there] = codes[new.values[there]]
    else:
        values[named] = 0
        values[np.ix_(named, codes[codes >= 0])] = new.values[named][:, codes >= 0]
    return values


def repaired(labels: Relabelled, node: str, reporter: Reporter) -> dict[str, Any]:
    """Fit heads with the old and with the new labels, and compare them on test by the new labels."""
    old, new = labels.old, labels.new
    rows, changed = old.rows["test"], new.target.values != old.target.values
    judged = []
    for each in (old, new):
        problem, train = each.problem(), each.rows["train"]
        head = artifact_of(each, node, train, fit_on(each, node, train, problem, reporter=reporter), problem)
        judged.append(evidence_of(new, rows, outputs_of(new, head, rows)))
    gain = difference(judged[1], judged[0])
    return {
        "labels": labels.file,
        "changed": int(changed.sum()),
        "changed_in_test": int(changed[rows].sum()),
        "test_accuracy_before": judged[0].mean,
        "test_accuracy_after": judged[1].mean,
        "gain": gain.gain,
        "gain_ci95": [gain.gain - 1.96 * gain.error, gain.gain + 1.96 * gain.error],
        "n": gain.n,
        "notes": [note.to_json() for note in labels.notes],
    }
