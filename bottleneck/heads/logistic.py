"""Logistic regression with an L2 penalty on the batched solver: a sweep over C.

Shapes: n samples, V rows (views) of a sample, D features, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from bottleneck.heads.config import DEFAULT, SweepConfig, grid_of, is_auto
from bottleneck.heads.cross_validation import CrossValidation, HeldOutLogits, cross_validate
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.row_blocks import Standardisation, standardisation
from bottleneck.heads.solver.arrays import Array, to_numpy
from bottleneck.heads.solver.design import Design, build_design, streamed_like
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import REFIT_TOLERANCE, Choice, Solution, refit, solve_path
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, group_tasks
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader
from bottleneck.threads import WorkerPool

DOUBLE_TOLERANCE = 1e-18  # of the objective, which is 1e-9 of the coefficients: float64 is solved to rounding


def sweep(
    rows: RowReader,
    problems: Sequence[TargetProblem],
    C: str | float | Iterable[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    weight: np.ndarray | None = None,
    reporter: Reporter = SILENT,
) -> list[HeadFit]:
    """Fit a logistic head for each problem, C chosen by cross-validation.

    The heads of all folds and problems are solved side by side, for each C in turn; at the chosen C a head is
    fitted on all samples.

    Parameters
    ----------
    rows : (n, D); with `plain`, (n · V, D), the V views of each sample, which share its weight.
    C : "auto", which is extended where the best C is at an end (`cross_validation.cross_validate`), a number,
        or several.
    problems : on the same n samples; their folds count from 0. If all folds are NO_FOLD, the largest C is
        used.
    plain : (n, D), the rows on which held-out samples are scored in place of their views.
    weight : (D,) that standardised features are multiplied by.
    """
    Cs = list(grid_of(C))
    with WorkerPool(config.device) as pool:
        run = _Sweep(rows, problems, config, plain, pool, weight)
        run.solve(Cs, reporter)
        further = partial(run.solve_further, reporter=reporter) if is_auto(C) else None
        results = cross_validate(problems, Cs, run.held_out, config.one_standard_error, further)
        return [replace(head, grows=is_auto(C)) for head in run.refitted(results)]


def held_out_logits(
    rows: RowReader, problem: TargetProblem, Cs: Sequence[float], config: SweepConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of C, samples (B,) and their logits (B, K) by heads that were fitted without them."""
    with WorkerPool(config.device) as pool:
        run = _Sweep(rows, [problem], config, None, pool)
        run.solve(Cs, SILENT)
        for _, index, samples, outputs in run.held_out({0: range(len(Cs))}):
            yield index, samples, outputs


class _Sweep:
    """The rows and problems of a sweep as the solver takes them, and its solutions.

    Attributes
    ----------
    passes, groups : of the rows that heads are fitted on. scored, scored_groups : of the rows that they are
        scored on, the same without views. sample : (rows,), the sample of each row that is scored.
    where : (group, index in it) of each task. tasks_of : (first, last) task of each problem.
    """

    def __init__(
        self,
        rows: RowReader,
        problems: Sequence[TargetProblem],
        config: SweepConfig,
        plain: RowReader | None,
        pool: WorkerPool,
        weight: np.ndarray | None = None,
    ) -> None:
        self.problems, self.config = problems, config
        self.solutions: list[Solution] = []
        fold = problems[0].fold
        views = rows.shape[0] // len(fold)
        folds = 1 + max(int(problem.fold.max(initial=NO_FOLD)) for problem in problems)
        parts = [problem.tasks() for problem in problems]
        tasks = [task for part in parts for task in part]
        self.tasks_of = list(pairwise(np.cumsum([0, *(len(part) for part in parts)]).tolist()))
        self.standard = Standardisation.identity(rows.shape[1])
        if config.standardize:
            weights = _row_weights(problems, views)
            self.standard = standardisation(rows, pool, weights, config.dtype)
        self.standard = replace(self.standard, weight=weight)
        # Rows in memory are arranged by fold: most blocks then have rows that some heads do not need.
        self.design, order = build_design(
            rows,
            self.standard,
            pool,
            config.memory,
            parts=np.repeat(fold, views),
            dtype=config.dtype,
            components=config.components,
            columns=sum(task.columns for task in tasks) * max(1, folds),
        )
        self.passes = Passes(self.design, pool)
        self.groups, self.where = group_tasks(
            [task.take(order // views, 1 / views) for task in tasks],
            folds,
            self.design.dtype,
            self.design.place,
        )
        self.scored, self.scored_groups, self.sample = self.passes, self.groups, order
        if plain is not None:
            design: Design = streamed_like(self.design, plain)
            self.scored, self.sample = Passes(design, pool), np.arange(len(fold))
            self.scored_groups, _ = group_tasks(tasks, folds, design.dtype, design.place)

    def solve(self, Cs: Sequence[float], reporter: Reporter, after: Solution | None = None) -> None:
        """Append the solutions at `Cs`, in ascending order. after : the one that the first starts from."""
        config = self.config
        with reporter.step("Fitting heads", total=len(Cs), unit="values of C") as advance:
            for solution in solve_path(
                self.passes, self.groups, Cs, tol=config.tol, memory=config.memory, after=after
            ):
                self.solutions.append(solution)
                advance(1)

    def solve_further(self, Cs: Sequence[float], reporter: Reporter) -> None:
        """Append the solutions at values of C below and above those that are solved, in ascending order."""
        by_C = sorted(self.solutions, key=lambda solution: solution.C)
        below = [C for C in Cs if C < by_C[0].C]
        for more, end in ((below, by_C[0]), ([C for C in Cs if C not in below], by_C[-1])):
            if more:
                self.solve(more, reporter, end)

    def held_out(self, wanted: Mapping[int, Sequence[int]]) -> HeldOutLogits:
        """Yield the logits of held-out samples, as `cross_validate` needs them."""
        for index in sorted({index for indices in wanted.values() for index in indices}):
            heads = list(zip(self.scored_groups, self.solutions[index].coef, strict=True))
            for start, stop, logits in self.scored.held_out(heads):
                samples = self.sample[start:stop]
                for i, indices in wanted.items():
                    if index in indices:
                        yield i, index, samples, self.problems[i].logits(self._columns(i, logits))

    def _columns(self, problem: int, parts: Sequence[Array]) -> np.ndarray:
        """Return one problem's columns (tasks, …) from arrays (T, …) per group."""
        tasks = self.where[slice(*self.tasks_of[problem])]
        return np.stack([to_numpy(parts[group][index]) for group, index in tasks])

    def refitted(self, results: Sequence[CrossValidation]) -> list[HeadFit]:
        """Fit each problem on all rows at its chosen C."""
        tasks: dict[tuple[int, int], list[int]] = {}  # (index of C, group) → tasks of the group
        for i, result in enumerate(results):
            for group, task in self.where[slice(*self.tasks_of[i])]:
                tasks.setdefault((result.chosen, group), []).append(task)
        choices = [
            Choice(self.groups[group], members, self.solutions[index].C, self.solutions[index].coef[group])
            for (index, group), members in tasks.items()
        ]
        tol = min(self.config.tol, REFIT_TOLERANCE)
        found = refit(self.passes, choices, tol=tol, memory=self.config.memory)
        fits = {
            (group, task): fit
            for ((_, group), members), (coef, converged) in zip(tasks.items(), found, strict=True)
            for task, *fit in zip(members, coef, converged, strict=True)
        }
        return [
            self._head(i, result, [fits[task] for task in self.where[slice(*self.tasks_of[i])]])
            for i, result in enumerate(results)
        ]

    def _head(self, i: int, result: CrossValidation, fits: Sequence[Sequence[Array]]) -> HeadFit:
        """Return the head of problem i. fits : columns (K, P) of each task, and whether they converged."""
        problem = self.problems[i]
        coef, intercept = problem.head(np.stack([to_numpy(columns) for columns, _ in fits]))
        head = (self.design.on_features(coef), intercept.astype(np.float64), self.standard)
        # A label that all samples share has its optimum at infinity, which `labels-of-all-samples` tells.
        values = problem.target.values[problem.target.labelled]
        alike = problem.target.kind == "multilabel" and (values == values[:1]).all(axis=0)
        converged = bool(np.all([ok for _, ok in fits] | np.asarray(alike)))
        C, library = self.solutions[result.chosen].C, self.design.place.library
        return HeadFit.linear("logistic", problem, head, C, result, converged, library=library)


def _row_weights(problems: Sequence[TargetProblem], views: int) -> np.ndarray | None:
    """Return weights (n · V,) for the standardisation: the sample weights if there is one problem."""
    if len(problems) > 1 or problems[0].sample_weight is None:
        return None
    return np.repeat(problems[0].sample_weight, views)
