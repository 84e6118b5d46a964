"""The path over C: all heads of all groups at one C after the other, with warm starts.

Shapes: H heads of a group, A heads of a batch, T tasks, K columns, P coefficients of a column (intercept
last).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.heads.config import DEFAULT_MEMORY, TOLERANCE
from bottleneck.heads.solver.arrays import Array, library, place_of, to_numpy
from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.lbfgs import BatchedLBFGS, History
from bottleneck.heads.solver.objective import Evaluation, Passes
from bottleneck.heads.solver.preconditioner import Preconditioner
from bottleneck.heads.solver.problem import TaskGroup

REFIT_TOLERANCE = 1e-6  # of the heads that are returned
HISTORY, MIN_HISTORY = 20, 4  # steps remembered, and the fewest where memory is short
MAX_PASSES = 1000  # at one C
BLOCK_COST = 1.0  # passes that computing a preconditioner may cost
MAX_BLOCK = 1536  # rows of one block
MIN_COUPLED = 16  # columns are coupled if a coupled block of this many coordinates is affordable
MIN_CURVATURE = 0.02  # relative to the penalty's 1; coordinates with less need no exact block
MIN_CLASS_SHARE = 1e-8  # of a class without samples, for its first intercept
MAX_EXTRAPOLATION = 1.5  # in steps of the path


class _Batch:
    """Heads of one group that are updated together along the path.

    heads : (A,) numbers in the group. null : (A,) loss of the best intercepts alone.
    optima : (A, K, P) at the last values of C, at first the start. history : of the steps at the last C.
    """

    def __init__(self, group: TaskGroup, heads: Array, design: Design, steps: int) -> None:
        self.group, self.heads = group, heads
        self.null, start = _intercepts_alone(group, heads, design)
        self.optima = [start]
        self.history = History(start, steps)
        self._last_C: float | None = None

    def solver(self, start: Array, prec: Preconditioner, C: float, tol: float) -> BatchedLBFGS:
        """Return the solver at C from `start` (A, K, P), with the history of the C before."""
        if self._last_C is not None:
            ratio = C / self._last_C
            on_weights = library(start).ones_like(start[0])
            on_weights[:, -1] = 0
            on_weights = on_weights.reshape(-1)
            self.history.rescale(
                lambda s, y: ratio * y + (1 - ratio) * on_weights * s, lambda y: prec.apply(self.heads, y)
            )
        self._last_C = C
        return BatchedLBFGS(
            self.heads, start, C * self.null, C=C, history=self.history, prec=prec, tol=tol, passes=MAX_PASSES
        )


@dataclass(frozen=True)
class Solution:
    """All heads at one C.

    coef : for each group (H, K, P), intercepts last. objective : for each group (H,) float64.
    converged : for each group (H,) bool. passes : over the rows, after the C before.
    """

    C: float
    coef: list[Array]
    objective: list[Array]
    converged: list[Array]
    passes: int


def solve_path(
    passes: Passes,
    groups: Sequence[TaskGroup],
    Cs: Sequence[float],
    *,
    tol: float = TOLERANCE,
    memory: int = DEFAULT_MEMORY,
    after: Solution | None = None,
) -> Iterator[Solution]:
    """Yield the solution of all heads of `groups` for each C, in ascending order.

    after : the solution at another C that the first one starts from; None starts from intercepts alone.
    tol : as in `BatchedLBFGS`. memory : bytes for work beside the rows. Where heads are many, fewer steps are
    remembered and the preconditioner's blocks are smaller.
    """
    passes = passes.over(groups)
    design, pool = passes.design, passes.pool
    steps = _history_size(groups, design, memory)
    batches = [
        _Batch(group, design.place.array(np.arange(group.n_heads)[part]), design, steps)
        for group in groups
        for part in pool.shares(group.n_heads)
    ]
    if after is not None:
        for batch in batches:
            batch.optima = [after.coef[groups.index(batch.group)][batch.heads]]
    solved: list[float] = []
    for C in sorted(set(Cs)):
        starts = [_extrapolated(batch.optima, solved, C) for batch in batches]
        precs = {
            group: _preconditioner(passes, group, coef, C, memory=memory)
            for group, coef in zip(groups, _by_group(groups, batches, starts), strict=True)
        }
        work = (
            (batch, start, precs[batch.group], C, tol) for batch, start in zip(batches, starts, strict=True)
        )
        solvers = list(pool.run(_Batch.solver, work))
        count = _minimise(passes, batches, solvers)
        for batch, solver in zip(batches, solvers, strict=True):
            batch.optima = [*(batch.optima if solved else []), solver.coef][-3:]
        solved = [*solved, C][-3:]
        yield Solution(
            C,
            _by_group(groups, batches, [solver.coef for solver in solvers]),
            _by_group(groups, batches, [solver.objective for solver in solvers]),
            _by_group(groups, batches, [solver.converged for solver in solvers]),
            count + 1,
        )


@dataclass(frozen=True)
class Choice:
    """Tasks of a group for which C was chosen. coef : (H, K, P) of all heads of the group at C."""

    group: TaskGroup
    tasks: Sequence[int]
    C: float
    coef: Array


def refit(passes: Passes, choices: Sequence[Choice], *, tol: float, memory: int) -> list[tuple[Array, Array]]:
    """Fit the tasks of each choice on all their rows at its C, starting from the heads of their folds.

    Returns for each choice coefficients (t, K, P), and whether each task converged to `tol`, (t,) bool.
    """
    groups = [choice.group.without_folds(choice.tasks) for choice in choices]
    passes = passes.over(groups)
    steps = _history_size(groups, passes.design, memory)
    batches, solvers = [], []
    for choice, whole in zip(choices, groups, strict=True):
        heads = place_of(choice.coef).array(np.arange(whole.n_tasks))
        start = _mean_over_folds(choice.group, choice.coef)[list(choice.tasks)]
        prec = _preconditioner(passes, whole, start, choice.C, memory=memory // len(choices))
        batches.append(_Batch(whole, heads, passes.design, steps))
        solvers.append(batches[-1].solver(start, prec, choice.C, tol))
    _minimise(passes, batches, solvers)
    return [(solver.coef, solver.converged) for solver in solvers]


def _minimise(passes: Passes, batches: Sequence[_Batch], solvers: Sequence[BatchedLBFGS]) -> int:
    """Run the solvers until all heads have ended, with one pass for all; return the number of passes."""
    count = 0
    while active := [(b, s) for b, s in zip(batches, solvers, strict=True) if len(s.heads)]:
        evaluations = [Evaluation(batch.group, solver.heads, solver.trial()) for batch, solver in active]
        results = passes.gradients(evaluations)
        work = (
            (solver, evaluation.coef, loss, slope)
            for (_, solver), evaluation, (loss, slope) in zip(active, evaluations, results, strict=True)
        )
        for _ in passes.pool.run(BatchedLBFGS.update, work):
            pass
        count += 1
    return count


def _intercepts_alone(group: TaskGroup, heads: Array, design: Design) -> tuple[Array, Array]:
    """Return the loss (A,) of the best intercepts alone, and coefficients (A, K, P): these, and zeros."""
    codes, weights = (to_numpy(part) for part in group.codes_and_weights(heads, 0, design.n))
    K = max(group.columns, 2)
    pairs = zip(codes, weights, strict=True)
    counts = np.stack([np.bincount(code, weights=weight, minlength=K) for code, weight in pairs])
    total = np.maximum(counts.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    offset = np.log(np.maximum(counts / total, MIN_CLASS_SHARE))
    coef = np.zeros((len(heads), group.columns, design.width + 1), design.dtype)
    if group.columns == 1:
        coef[..., -1] = offset[:, 1:] - offset[:, :1]
    else:
        coef[..., -1] = offset - offset.mean(axis=1, keepdims=True)
    return design.place.array(-(counts * offset).sum(axis=1)), design.place.array(coef)


def _extrapolated(optima: Sequence[Array], solved: Sequence[float], C: float) -> Array:
    """Return the start at C: the mean of the line through the last two optima and of the parabola through the
    last three, as functions of log C; the line alone where there are two.

    The last optimum itself where there is only one, or where C is too far away. Optima are known up to the
    tolerance. The parabola multiplies that error by 4.4 on an even grid, the mean by 3.2.
    """
    if len(solved) < 2:
        return optima[-1]
    at = np.log(solved)
    if (np.log(C) - at[-1]) > MAX_EXTRAPOLATION * (at[1:] - at[:-1]).min():
        return optima[-1]
    curves = [range(first, len(solved)) for first in range(len(solved) - 1)]  # optima of each curve
    start = 0 * optima[-1]
    for curve in curves:
        for i in curve:
            others = np.delete(at[curve], i - curve.start)
            share = np.prod((np.log(C) - others) / (at[i] - others)) / len(curves)
            start += float(share) * optima[i]
    return start


def _preconditioner(passes: Passes, group: TaskGroup, coef: Array, C: float, memory: int) -> Preconditioner:
    """Return H0 from the curvature on all rows, at the mean (T, K, P) of each task's heads (H, K, P)."""
    design, K = passes.design, group.columns
    # A pass takes 4 F K Q operations a row and task, blocks of j columns and r coordinates K (j + 1) r².
    affordable_cost = BLOCK_COST * 4 * group.heads_per_task * design.width
    coupled = K > 1 and affordable_cost >= (K + 1) * MIN_COUPLED**2
    joint = K if coupled else 1
    r = min(
        int(np.sqrt(affordable_cost / (joint + 1))),
        int((0.25 * C * design.values > MIN_CURVATURE).sum()),
        int(np.sqrt(memory / 8 / (3 * 8 * group.n_tasks * K * joint))),
        MAX_BLOCK // joint,
        design.width,
    )
    tasks = design.place.array(np.arange(group.n_tasks))
    whole = group.without_folds(range(group.n_tasks))
    block = passes.curvatures(Evaluation(whole, tasks, _mean_over_folds(group, coef)), r, coupled)
    return Preconditioner(
        block,
        design.values,
        C=C,
        rows=design.n,
        columns=K,
        heads_per_task=group.heads_per_task,
        dtype=design.dtype,
    )


def _mean_over_folds(group: TaskGroup, coef: Array) -> Array:
    """Return (T, K, P) for the heads' coefficients (H, K, P)."""
    return coef.reshape(group.n_tasks, group.heads_per_task, *coef.shape[1:]).mean(axis=1)


def _history_size(groups: Sequence[TaskGroup], design: Design, memory: int) -> int:
    """Return how many steps of all heads fit in an eighth of the memory."""
    size = sum(group.n_heads * group.columns for group in groups) * (design.width + 1)
    return int(np.clip(memory / 8 / (3 * 4 * size), MIN_HISTORY, HISTORY))


def _by_group(groups: Sequence[TaskGroup], batches: Sequence[_Batch], parts: Sequence[Array]) -> list[Array]:
    """Join one tensor per batch to one (H, …) per group."""
    return [
        library(parts[0]).concatenate(
            [part for batch, part in zip(batches, parts, strict=True) if batch.group is group]
        )
        for group in groups
    ]
