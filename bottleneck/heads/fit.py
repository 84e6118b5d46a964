"""Fit the heads that `fit-head --head` names, with cross-validation, on all targets of one node.

Shapes: n samples, V views of a sample, D features, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bottleneck.heads.baselines import KNNHead, NearestMeanHead
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import HeldOutLogits, cross_validate
from bottleneck.heads.estimator import ClassHead
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.logistic import sweep
from bottleneck.heads.mlp import MLPHead
from bottleneck.heads.ridge import ridge_sweep
from bottleneck.heads.row_blocks import SelectedRows, ViewRows
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.names import LINEAR_HEADS
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader

ABSENT = -30.0  # logit of a class that a fold's training samples lack


def fit_kind(
    kind: str,
    rows: RowReader,
    problems: Sequence[TargetProblem],
    Cs: Sequence[float],
    config: SweepConfig,
    views: RowReader | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[HeadFit]:
    """Fit one kind of head on all problems, which are on the same n samples.

    problems : only of class targets for kinds that are not linear.
    rows : (n, D). views : (n, V, D), on which linear heads are fitted instead; they are scored on `rows`.
    """
    if kind not in LINEAR_HEADS:
        heads = []
        with reporter.step(f"Fitting {kind} heads", total=len(problems), unit="targets") as advance:
            for problem in problems:
                heads.append(_fit_classes(kind, rows, problem, seed))
                advance(1)
        return heads
    trained, plain = (rows, None) if views is None else (ViewRows(views), rows)
    ridge = [i for i, p in enumerate(problems) if kind == "ridge" or p.target.kind == "regression"]
    logistic = [i for i in range(len(problems)) if i not in ridge]
    fits: dict[int, HeadFit] = {}
    for solve, indices in ((sweep, logistic), (ridge_sweep, ridge)):
        if indices:
            chosen = [problems[i] for i in indices]
            found = solve(trained, chosen, Cs, config, plain=plain, reporter=reporter)
            fits |= dict(zip(indices, found, strict=True))
    return [fits[i] for i in range(len(problems))]


def _fit_classes(kind: str, rows: RowReader, problem: TargetProblem, seed: int) -> HeadFit:
    """Fit a head without C on all labelled samples, and once more without each fold."""
    target, fold = problem.target, problem.fold
    fit = _fitter(kind, problem, seed)
    labelled = np.flatnonzero(target.labelled)

    def held_out(wanted: Mapping[int, Sequence[int]]) -> HeldOutLogits:
        for number in range(fold.max() + 1):
            seen, samples = labelled[fold[labelled] != number], np.flatnonzero(fold == number)
            head = fit(SelectedRows(rows, seen), target.values[seen])
            logits = np.full((len(samples), problem.outputs), ABSENT, np.float32)
            logits[:, head.classes_] = head.logits(SelectedRows(rows, samples))
            yield 0, 0, samples, logits

    head = fit(SelectedRows(rows, labelled), target.values[labelled])
    (result,) = cross_validate([problem], [np.nan], held_out)
    return replace(head.fit_, scores=result.scores, out_of_fold=result.out_of_fold)


def _fitter(kind: str, problem: TargetProblem, seed: int) -> Callable[[RowReader, np.ndarray], ClassHead]:
    """Return the function that fits a new head of the kind to rows (m, D) and class codes (m,)."""
    if kind == "knn":
        return lambda rows, codes: KNNHead().fit(rows, codes)
    if kind == "nearest-mean":
        return lambda rows, codes: NearestMeanHead().fit(rows, codes)
    weight = problem.class_weight
    return lambda rows, codes: MLPHead(class_weight=weight, random_state=seed).fit(rows, codes)
