"""Find labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

A sample is counted as of class j, whatever its label says, if its held-out probability of j is at least the
mean probability of j among the samples labelled j. Counts by label i and class j, scaled to the number of
labels i, estimate how many labels are wrong. So many samples are flagged: those of which the label has the
lowest probability, among the samples for which another class is the likeliest.

The probabilities are from heads that were fitted without the sample.

Shapes: n judged samples, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from bottleneck.errors import ArtifactError, FitError
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.progress import Reporter
from bottleneck.samples import Target
from bottleneck.trials.heads import artifact_of, fit_on, held_out, outputs_of
from bottleneck.trials.task import Task


@dataclass(frozen=True)
class LabelQuality:
    """How well the labels of n samples agree with held-out probabilities.

    score : (n,) probability of the given label; low is suspicious.
    suggested : (n,) the likeliest class.
    flag : (n,) bool, True for labels that are probably wrong.
    """

    score: np.ndarray
    suggested: np.ndarray
    flag: np.ndarray


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> LabelQuality:
    """Judge labels (n,) of K classes by probabilities (n, K) from models that have not seen the sample."""
    n = len(labels)
    score = probabilities[np.arange(n), labels].astype(np.float64)
    suggested = probabilities.argmax(axis=1)
    candidates = np.flatnonzero(suggested != labels)
    wrong = min(estimated_errors(labels, probabilities), len(candidates))
    flag = np.zeros(n, bool)
    flag[candidates[np.argsort(score[candidates], kind="stable")[:wrong]]] = True
    return LabelQuality(score, suggested, flag)


def multilabel_quality(labels: np.ndarray, probabilities: np.ndarray) -> LabelQuality:
    """Judge each label of (n, L) bits by itself; the fields of the result are (n, L)."""
    each = [
        label_quality(labels[:, k].astype(np.int64), np.stack([1 - p, p], axis=1))
        for k, p in enumerate(probabilities.T)
    ]
    return LabelQuality(
        *(np.stack([getattr(q, name) for q in each], axis=1) for name in ("score", "suggested", "flag"))
    )


def estimated_errors(labels: np.ndarray, probabilities: np.ndarray) -> int:
    """Return how many labels (n,) are wrong by the confident joint of labels and probabilities (n, K)."""
    joint = confident_joint(labels, probabilities)
    return int(np.rint(joint.sum() - np.trace(joint)))


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return counts (K, K) of samples by their label and their confident class.

    A row adds to the number of samples with the label; a class without a sample has a row of zeros.
    """
    n, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros(classes)
    np.add.at(sums, labels, probabilities[np.arange(n), labels])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    above = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    confident = above.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[confident], above[confident].argmax(axis=1)), 1)
    # A class of which no sample is confident keeps its labels.
    np.fill_diagonal(joint, np.where((joint.sum(axis=1) == 0) & (counts > 0), 1, np.diag(joint)))
    return joint * (counts / np.maximum(joint.sum(axis=1), 1))[:, None]


@dataclass(frozen=True)
class Judged:
    """Samples with probabilities from heads that were fitted without them.

    rows : (n,) samples of the table. probabilities : (n, K), or (n, L). head : measures test.
    """

    task: Task
    node: str
    rows: np.ndarray
    probabilities: np.ndarray
    head: HeadArtifact

    @property
    def answers(self) -> Target:
        return self.task.target.take(self.rows)

    def quality(self) -> LabelQuality:
        """Judge the labels."""
        judge = label_quality if self.answers.kind == "class" else multilabel_quality
        return judge(self.answers.values, self.probabilities)


def fitted(task: Task, node: str, reporter: Reporter) -> Judged:
    """Fit a head with cross-validation and return all labelled samples, judged."""
    problem = task.problem()
    fit = fit_on(task, node, task.rows["train"], problem, reporter=reporter)
    held = held_out(fit)
    if not len(held):
        raise FitError(
            f"Target {task.target.name!r} has too few samples of a class for folds to judge its labels.",
            "Bring more samples, or fewer folds with --cv.",
        )
    assert fit.out_of_fold is not None
    train = task.rows["train"]
    head = artifact_of(task, node, train, fit, problem)
    return _with_other_splits(task, node, train[held], fit.out_of_fold[held], head)


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
        raise ArtifactError(f"{beside} cannot be read: {error}.", again) from error
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
    """Return the samples of train with out-of-fold logits, and those of val and test with the head's."""
    others = [task.rows[split] for split in ("val", "test") if split in task.rows]
    outputs = [logits, *(outputs_of(task, head, indices) for indices in others)]
    probabilities = apply_link(np.concatenate(outputs), head.link, head.temperature)
    return Judged(task, node, np.concatenate([rows, *others]), probabilities, head)
