"""Ridge heads for classes and numbers: a sweep over C in closed form.

Shapes: n samples, V rows (views) of a sample, B rows of a block, D features, K outputs, G values of C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bottleneck.heads.config import DEFAULT, SweepConfig, grid_of, is_auto
from bottleneck.heads.cross_validation import HeldOutLogits, cross_validate
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.row_blocks import (
    Standardisation,
    standardisation,
)
from bottleneck.heads.solver.arrays import to_numpy
from bottleneck.heads.solver.design import Design, build_design, streamed_like
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, class_factors
from bottleneck.heads.solver.ridge_path import Moments, RidgePath, moments_by_fold
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import UNLABELLED, RowReader
from bottleneck.threads import WorkerPool


def ridge_sweep(
    rows: RowReader,
    problems: Sequence[TargetProblem],
    C: str | float | Iterable[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    weight: np.ndarray | None = None,
    reporter: Reporter = SILENT,
) -> list[HeadFit]:
    """Fit a ridge head for each problem; arguments and result as of `logistic.sweep`, with λ = 1/C.

    Classes and labels have one output each, whose answers are −1 and 1; a regression has its values.
    """
    with WorkerPool(config.device) as pool:
        run = RidgeRows(rows, len(problems[0].fold), config, pool, plain, weight=weight)
        heads = []
        with reporter.step("Fitting ridge heads", total=len(problems), unit="targets") as advance:
            for problem in problems:
                heads.append(_fit(run, problem, C, config.one_standard_error))
                advance(1)
        return heads


class RidgeRows:
    """The rows of a fit.

    design : the rows that heads are fitted on; sample (n · V,), the sample of each, order (n · V,), its row.
    scored : the rows that heads are scored on, the same without views; scored_sample, the sample of each.
    """

    def __init__(
        self,
        rows: RowReader,
        n: int,
        config: SweepConfig,
        pool: WorkerPool,
        plain: RowReader | None = None,
        weights: np.ndarray | None = None,
        weight: np.ndarray | None = None,
    ) -> None:
        self.pool, self.views = pool, rows.shape[0] // n
        self.standard = Standardisation.identity(rows.shape[1])
        if config.standardize:
            self.standard = standardisation(rows, pool, weights, config.dtype)
        self.standard = replace(self.standard, weight=weight)
        self.design, order = build_design(rows, self.standard, pool, config.memory, dtype=config.dtype)
        self.sample = order // self.views
        self.scored: Design = self.design
        self.scored_sample = self.sample
        if plain is not None:
            self.scored, self.scored_sample = streamed_like(self.design, plain), np.arange(n)

    def moments(self, answers: np.ndarray, weights: np.ndarray, fold: np.ndarray) -> list[Moments]:
        """Return the moments by fold of samples (n, …)."""
        sample = self.sample
        weights = weights[sample] / self.views
        return moments_by_fold(self.design, self.pool, answers[sample], weights, fold[sample])

    def head(self, path: RidgePath, C: float) -> tuple[np.ndarray, np.ndarray, Standardisation]:
        """Return coef (K, D) and intercept (K,) on standardised features at C, and the standardisation."""
        coef, intercept = path.at(C)
        return self.design.from_blocks(coef), intercept, self.standard

    def held_out(self, fold: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield (samples (B,), their fold, rows (B, D)) block by block, for each fold in a block."""
        for start, stop in self.scored.blocks():
            x = to_numpy(self.scored.read(start, stop))
            samples = self.scored_sample[start:stop]
            for number in np.unique(fold[samples]):
                if number != NO_FOLD:
                    members = fold[samples] == number
                    yield samples[members], int(number), x[members]

    def scoring(self, path: RidgePath, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (K, D) and intercept (K,) at C, float32, as they multiply the rows of `held_out`."""
        coef, intercept = path.at(C)
        if self.scored is not self.design:
            coef = self.design.from_blocks(coef)
        return coef.astype(np.float32), intercept.astype(np.float32)


def held_out_values(
    rows: RowReader, problem: TargetProblem, Cs: Sequence[float], config: SweepConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of C, samples (B,) and their outputs (B, K) by heads that were fitted without them."""
    with WorkerPool(config.device) as pool:
        run = RidgeRows(rows, len(problem.fold), config, pool)
        _, paths = _paths(run, problem)
        yield from _held_out(run, problem, paths, Cs, range(len(Cs)))


def _paths(run: RidgeRows, problem: TargetProblem) -> tuple[Moments, list[RidgePath]]:
    """Return the moments of all rows, and the path of each fold."""
    moments = run.moments(*answers_of(problem), problem.fold)
    whole = Moments.zeros(len(moments[0].x), len(moments[0].y))
    for part in moments:
        whole.add(part)
    return whole, [RidgePath.of(whole.without(part)) for part in moments[:-1]]


def _held_out(
    run: RidgeRows,
    problem: TargetProblem,
    paths: Sequence[RidgePath],
    Cs: Sequence[float],
    indices: Sequence[int],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for samples, number, x in run.held_out(problem.fold):
        for index in indices:
            coef, intercept = run.scoring(paths[number], Cs[index])
            yield index, samples, x @ coef.T + intercept


def _fit(
    run: RidgeRows, problem: TargetProblem, strength: str | float | Iterable[float], one_standard_error: bool
) -> HeadFit:
    """Fit one problem: score each C on each fold, then fit all samples at the chosen C."""
    Cs = list(grid_of(strength))
    whole, paths = _paths(run, problem)

    def held_out(wanted: Mapping[int, Sequence[int]]) -> HeldOutLogits:
        return ((0, *found) for found in _held_out(run, problem, paths, Cs, wanted[0]))

    further = (lambda more: None) if is_auto(strength) else None  # a path has the solutions at all C
    (result,) = cross_validate([problem], Cs, held_out, one_standard_error, further)
    C = Cs[result.chosen]
    head = run.head(RidgePath.of(whole), C)
    library = run.design.place.library
    return HeadFit.linear("ridge", problem, head, C, result, grows=is_auto(strength), library=library)


def answers_of(problem: TargetProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return answers (n, K) and weights (n,), both float64; the weight is 0 where there is no label."""
    target, labelled = problem.target, problem.target.labelled
    weights = np.ones(len(labelled)) if problem.sample_weight is None else problem.sample_weight
    weights = np.where(labelled, weights, 0.0)
    if target.kind == "regression":
        return np.where(labelled, target.values, 0.0)[:, None], weights
    if target.kind == "multilabel":
        return np.where(target.values == 1, 1.0, -1.0), weights
    codes = np.where(target.values == UNLABELLED, 0, target.values)
    factor = class_factors(problem.class_weight, codes, weights > 0)
    return np.where(codes[:, None] == np.arange(problem.outputs), 1.0, -1.0), weights * factor[codes]
