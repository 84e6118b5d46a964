"""Samples with probabilities from heads that were fitted without them: by a new head, or by one's own.

Shapes: n judged samples, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np

from bottleneck.errors import ArtifactError, FitError, Note, quoted
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.progress import Reporter
from bottleneck.samples import Target
from bottleneck.studies.audit.label_errors import LabelQuality, label_quality, multilabel_quality
from bottleneck.trials.heads import artifact_of, fit_on, outputs_of
from bottleneck.trials.task import Task

FEW = 10_000  # samples of train; with more, C is chosen on `SAMPLE` of them first
SAMPLE = 4_000
NEAR = (0.1, 1.0, 10**0.5)  # of that C, tried on all
MANY = SweepConfig(memory=256 << 20, tol=1e-4, components=512)  # how heads on more than `FEW` are fitted


@dataclass(frozen=True)
class Judged:
    """Samples with probabilities from heads that were fitted without them.

    rows : (n,) samples of the table. probabilities : (n, K), or (n, L). head : measures test.
    unjudged : labels of a multi-label target that are not judged. notes : on what is not judged.
    """

    task: Task
    node: str
    rows: np.ndarray
    probabilities: np.ndarray
    head: HeadArtifact
    notes: tuple[Note, ...] = ()
    unjudged: tuple[int, ...] = ()

    @property
    def answers(self) -> Target:
        return self.task.target.take(self.rows)

    def quality(self, doubt: float, precision: float) -> LabelQuality:
        """Judge the labels. doubt, precision : as of `label_quality`."""
        judge = label_quality if self.answers.kind == "class" else multilabel_quality
        quality = judge(self.answers.values, self.probabilities, doubt, precision)
        for code in self.unjudged:
            quality.flag[:, code], quality.wrong[:, code], quality.share[code] = False, 0.0, 0.0
        return quality

    @property
    def accuracy(self) -> float:
        """Share of the labels that the held-out predictions have, of several the mean."""
        if self.answers.kind == "class":
            return float((self.probabilities.argmax(axis=1) == self.answers.values).mean())
        return float(((self.probabilities > 0.5) == self.answers.values).mean())


def fitted(task: Task, node: str, reporter: Reporter) -> Judged:
    """Fit a head with cross-validation and return all labelled samples, judged."""
    problem = task.problem()
    fit, notes = _fit(task, node, problem, reporter)
    held, logits = fit.held_out()
    if not len(held):
        raise FitError(
            f"Target {task.target.name!r} has too few samples of a class for folds to judge its labels.",
            "Bring more samples, or fewer folds with --cv.",
        )
    train = task.rows["train"]
    head = artifact_of(task, node, train, fit, problem)
    judged = _with_other_splits(task, node, train[held], logits, head)
    return replace(judged, notes=(*notes, *judged.notes))


def _fit(
    task: Task, node: str, problem: TargetProblem, reporter: Reporter
) -> tuple[HeadFit, tuple[Note, ...]]:
    """Fit a head on train with cross-validation; on many samples in less time and memory, which is noted.

    Of few samples' best C, the value at which the penalty keeps its weight relative to the sum of losses is
    tried on all, with one below, which is a cheap start, and one above.
    """
    train = task.rows["train"]
    n = len(train)
    if n <= FEW:
        return fit_on(task, node, train, problem, reporter=reporter), ()
    drawn = _spread(problem, SAMPLE)
    part = TargetProblem(problem.target.take(drawn), problem.fold[drawn])
    found = fit_on(task, node, train[drawn], part, reporter=reporter, config=MANY)
    assert found.C is not None  # of a logistic head
    Cs = [float(found.C * len(drawn) / n * factor) for factor in NEAR]
    fit = fit_on(task, node, train, problem, Cs, found.settings.get("scales"), reporter, MANY)
    width = task.cache.sample_rows(node, train[:1]).shape[1]
    text = (
        f"Train has {n:,} samples: C was chosen on {len(drawn):,} of them, and among {len(Cs)} values near "
        "it on all"
    )
    if width > (most := MANY.components or width):
        text += f", with the first {most} principal components of {width:,} features"
    text += ". A head of fit-head with its out-of-fold file, as --head, judges without this."
    return fit, (Note("judged-approximately", text, details={"samples": n, "C_samples": len(drawn)}),)


def _spread(problem: TargetProblem, count: int) -> np.ndarray:
    """Return (count,) sorted indices of labelled samples, spread evenly over the classes and folds."""
    target = problem.target
    known = np.flatnonzero(target.labelled)
    values = target.values[known]
    order = np.lexsort((problem.fold[known], values if target.kind == "class" else values.sum(axis=1)))
    return np.sort(known[order[np.linspace(0, len(known) - 1, count).astype(int)]])


def from_head(task: Task, head: HeadArtifact, path: Path) -> Judged:
    """Read the out-of-fold logits beside a head file, and return all labelled samples, judged."""
    if task.cache.vector_fingerprint(head.node) != head.node_fingerprint:
        raise ArtifactError(
            f"The head {path} was fitted on other features than {task.cache.path} holds.",
            f"Fit one on this cache: bottleneck fit-head {quote(str(task.cache.path))}",
        )
    beside = path.with_name(f"{path.stem}--out-of-fold.npz")
    again = f"Fit it again: bottleneck fit-head {quote(str(task.cache.path))}; or leave --head out."
    try:
        with np.load(beside, allow_pickle=False) as stored:
            sample, logits, names = (stored[name] for name in ("sample", "logits", "class_names"))
    except FileNotFoundError:
        raise ArtifactError(
            f"The head {path} has no out-of-fold file {beside.name} beside it.", again
        ) from None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ArtifactError(
            f"{beside} cannot be read: it is damaged, or no file of fit-head.", again
        ) from error
    if names.tolist() != list(task.target.class_names) or logits.shape != (len(sample), len(names)):
        raise ArtifactError(f"{beside} is of other classes than target {task.target.name!r} has.", again)
    row_of = {key: row for row, key in enumerate(task.samples.key)}
    rows = np.array([row_of.get(str(key), -1) for key in sample], np.int64)
    train = np.isin(rows, task.rows["train"]) & np.isfinite(logits).all(axis=1)
    if not train.any():
        raise ArtifactError(f"{beside} has no sample of {task.cache.path}.", again)
    return _with_other_splits(task, head.node, rows[train], logits[train], head)


def _with_other_splits(
    task: Task, node: str, rows: np.ndarray, logits: np.ndarray, head: HeadArtifact
) -> Judged:
    """Return the samples of train with out-of-fold logits, and those of val and test with the head's.

    Raises FitError where no label can be judged.
    """
    known, unjudged, notes = _known_elsewhere(task, rows)
    rows, logits = rows[known], logits[known]
    others = [task.rows[split] for split in ("val", "test") if split in task.rows]
    if not len(rows) and not others:
        raise FitError(
            f"No label of {task.target.name!r} can be judged: the samples of each class are in one fold.",
            "Bring samples of each class from several groups, or set some aside: --val-fraction 0.2.",
        )
    outputs = [logits, *(outputs_of(task, head, indices) for indices in others)]
    probabilities = apply_link(np.concatenate(outputs), head.link, head.temperature)
    return Judged(task, node, np.concatenate([rows, *others]), probabilities, head, notes, unjudged)


def _known_elsewhere(task: Task, rows: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], tuple[Note, ...]]:
    """Return (n,) bool, whether samples `rows` of train have a class that is in two folds; of a multi-label
    target, the labels whose positive samples are not in two; and a note.

    The head without the only fold of a class does not know it: it would hold each label for wrong.
    """
    target, train = task.target, task.rows["train"]
    if target.kind != "class":
        return np.full(len(rows), True), *_labels_in_one_fold(task)
    codes = target.values[train]
    folds = [len(np.unique(task.fold[codes == code])) for code in range(len(target.class_names))]
    known = np.array(folds)[target.values[rows]] > 1
    if known.all():
        return known, (), ()
    names = [target.class_names[code] for code in np.unique(target.values[rows[~known]])]
    text = (
        f"Not judged: {int((~known).sum()):,} of {len(known):,} labels, as all samples of "
        f"{quoted(names)} are in one fold; the head "
        "without them does not know the class."
    )
    return known, (), (Note("labels-not-judged", text, details={"classes": names}),)


def _labels_in_one_fold(task: Task) -> tuple[tuple[int, ...], tuple[Note, ...]]:
    """Return the labels of a multi-label target whose positive samples are not in two folds, and a note."""
    target, train = task.target, task.rows["train"]
    folds = [len(np.unique(task.fold[bits == 1])) for bits in target.values[train].T]
    alone = tuple(code for code, count in enumerate(folds) if count < 2)
    if not alone:
        return (), ()
    names = [target.class_names[code] for code in alone]
    text = (
        f"{quoted(names)}: not judged, as all samples that "
        "have the label are in one fold; the head without them does not know it."
    )
    return alone, (Note("labels-not-judged", text, details={"classes": names}),)
