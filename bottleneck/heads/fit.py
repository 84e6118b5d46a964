"""The heads that `fit-head --head` names, each fitted with its cross-validation on all targets of one node.

Shapes: n samples, D features, C classes or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bottleneck.errors import FitError
from bottleneck.heads.baselines import KNNHead, NearestMeanHead
from bottleneck.heads.cross_validation import Scores, tally_of
from bottleneck.heads.estimator import ClassHead
from bottleneck.heads.logistic import Fitted, SweepConfig, sweep
from bottleneck.heads.mlp import MLPHead
from bottleneck.heads.ridge import ridge_sweep
from bottleneck.heads.row_blocks import SelectedRows, ViewRows, block_size, blocks, read_checked
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.names import LINEAR_HEADS
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader

ABSENT = -30.0  # logit of a class that a fold's training samples lack


@dataclass(frozen=True)
class KindResult:
    """One target's head of any kind.

    kind, form, link, arrays, settings, C : as `HeadArtifact` takes them.
    classes : codes that the head knows; all, but for those without a training sample where it cannot.
    scores : of cross-validation, None without folds.
    out_of_fold : (n, all C) logits, NaN where no fold holds the sample out; None without folds.
    """

    kind: str
    form: str
    link: str
    arrays: Mapping[str, np.ndarray]
    C: float | None
    classes: np.ndarray
    scores: Scores | None
    out_of_fold: np.ndarray | None
    converged: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


def fit_kind(
    kind: str,
    rows: RowReader,
    questions: Sequence[TargetProblem],
    Cs: Sequence[float],
    config: SweepConfig,
    views: RowReader | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[KindResult]:
    """Fit one kind of head on all questions about the same n samples.

    rows : (n, D). views : (n, V, D), on which linear heads are fitted instead.

    Raises
    ------
    FitError
        The kind does not answer a target of this sort.
    """
    if kind in LINEAR_HEADS:
        if views is None:
            return _linear(kind, rows, questions, Cs, config, None, reporter)
        return _linear(kind, ViewRows(views), questions, Cs, config, rows, reporter)
    with reporter.step(f"Fitting {kind} heads", total=len(questions), unit="targets") as advance:
        found = []
        for question in questions:
            found.append(_estimator(kind, rows, question, seed))
            advance(1)
    return found


def _linear(
    kind: str,
    rows: RowReader,
    questions: Sequence[TargetProblem],
    Cs: Sequence[float],
    config: SweepConfig,
    plain: RowReader | None,
    reporter: Reporter,
) -> list[KindResult]:
    """Logistic heads; least squares for `kind` ridge and for regressions, which have no classes."""
    squares = [i for i, q in enumerate(questions) if kind == "ridge" or q.target.kind == "regression"]
    logistic = [i for i in range(len(questions)) if i not in squares]
    found: dict[int, KindResult] = {}
    for name, which, solve in (("logistic", logistic, sweep), ("ridge", squares, ridge_sweep)):
        if which:
            asked = [questions[i] for i in which]
            fitted = solve(rows, asked, Cs, config, plain, reporter)
            found |= {i: _as_result(name, q, f) for i, q, f in zip(which, asked, fitted, strict=True)}
    return [found[i] for i in range(len(questions))]


def _as_result(kind: str, question: TargetProblem, fitted: Fitted) -> KindResult:
    link = "identity" if question.target.kind == "regression" else fitted.link
    arrays = {
        "coef": fitted.coef,
        "intercept": fitted.intercept,
        "mean": fitted.standard.mean,
        "scale": fitted.standard.scale,
    }
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    classes = np.arange(question.outputs)
    settings = {"class_weight": question.class_weight, "multi_class": question.multi_class}
    return KindResult(
        kind,
        "linear",
        link,
        arrays,
        fitted.C,
        classes,
        fitted.scores,
        fitted.out_of_fold,
        fitted.converged,
        settings,
    )


def _estimator(kind: str, rows: RowReader, question: TargetProblem, seed: int) -> KindResult:
    """A head without C, fitted on all labelled samples and once more without each fold."""
    target, fold = question.target, question.fold
    if target.kind != "class":
        raise FitError(
            f"A {kind} head answers class targets; {target.name!r} is a {target.kind} one.",
            "Use --head logistic or --head ridge.",
        )
    make = _maker(kind, question, seed)
    labelled = np.flatnonzero(target.labelled)
    head = make().fit(SelectedRows(rows, labelled), target.values[labelled])
    folds = int(fold.max(initial=NO_FOLD)) + 1
    scores = held = None
    if folds:
        held = np.full((len(fold), question.outputs), np.nan, np.float32)
        tally = tally_of(target, fold, folds, "softmax")
        tally.begin()
        for number in range(folds):
            seen = labelled[fold[labelled] != number]
            apart = make().fit(SelectedRows(rows, seen), target.values[seen])
            out = np.flatnonzero(fold == number)
            held[out] = _all_logits(apart, SelectedRows(rows, out), question.outputs)
            tally.add(out, held[out])
        scores = tally.scores([np.nan])
    arrays, settings = head.arrays_, dict(head.settings_)
    return KindResult(kind, head.form, "softmax", arrays, None, head.classes_, scores, held, True, settings)


def _maker(kind: str, question: TargetProblem, seed: int) -> Callable[[], ClassHead]:
    if kind == "knn":
        return KNNHead
    if kind == "nearest-mean":
        return NearestMeanHead
    return lambda: MLPHead(class_weight=question.class_weight, random_state=seed)


def _all_logits(head: ClassHead, rows: RowReader, outputs: int) -> np.ndarray:
    """(m, C) logits with a place for classes that the head has not seen."""
    out = np.full((rows.shape[0], outputs), ABSENT, np.float32)
    artifact = head.artifact()
    for start, stop in blocks(rows, block_size(rows.shape[1])):
        out[start:stop, head.classes_] = artifact.decision(read_checked(rows, start, stop))
    return out
