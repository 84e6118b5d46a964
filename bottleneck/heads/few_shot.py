"""The accuracy of a head that is fitted on k samples per class, over many random draws fitted side by side.

Shapes: n samples, D features, R draws, m samples that any draw has, K columns of a head, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bottleneck.errors import FitError
from bottleneck.heads.config import DEFAULT, SweepConfig
from bottleneck.heads.row_blocks import SelectedRows
from bottleneck.heads.solver.design import build_design, streamed_like
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import solve_path
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, Task, group_tasks
from bottleneck.heads.standardise import Standardisation, standardisation
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader, Target
from bottleneck.threads import WorkerPool

MAX_C = 1.0


def shot_scores(
    rows: RowReader,
    target: Target,
    C: float,
    shots: Sequence[int],
    *,
    repeats: int,
    seed: int = 0,
    config: SweepConfig = DEFAULT,
    reporter: Reporter = SILENT,
) -> np.ndarray:
    """Return the accuracy (len(shots), R) of heads fitted on k samples per class, on the samples not drawn.

    Parameters
    ----------
    rows : (n, D) to draw from. Features are standardised over all of them, which needs no labels.
    target : class target of the n rows.
    C : chosen for all n samples. A draw is fitted at C · n / (samples drawn), at most 1, so that the penalty
        keeps its weight relative to the sum of losses.
    repeats : R.

    Raises
    ------
    FitError
        No class has more samples than the largest k, so that none is left to measure on.
    """
    counts = np.bincount(target.values[target.labelled], minlength=1)
    if counts.max() <= max(shots):
        raise FitError(
            f"The largest class of target {target.name!r} has {counts.max()} samples to train on; "
            f"{max(shots)} shots would leave none to measure on.",
            f"Use --shots below {counts.max()}.",
        )
    scores = []
    with WorkerPool(config.device) as pool:
        standard = standardisation(rows, pool, None, config.dtype)
        measure = _Measure(rows, target, standard, pool, config)
        with reporter.step("Drawing shots", total=len(shots), unit="sizes") as advance:
            for k in shots:
                draws = draw_shots(target, k, repeats, np.random.default_rng([seed, k]))
                draw_C = min(MAX_C, C * int(target.labelled.sum()) / int(draws[0].sum()))
                scores.append(measure.accuracy(draws, draw_C))
                advance(1)
    return np.array(scores)


def draw_shots(target: Target, k: int, repeats: int, generator: np.random.Generator) -> np.ndarray:
    """Return R random draws (R, n) bool of k samples of every class, or all of a class that has fewer."""
    draws = np.zeros((repeats, len(target.values)), bool)
    for code in np.unique(target.values[target.labelled]):
        members = np.flatnonzero(target.values == code)
        for draw in draws:
            draw[generator.permutation(members)[:k]] = True
    return draws


@dataclass(frozen=True)
class _Measure:
    """Fits one head per draw and measures it on the labelled samples that the draw leaves out."""

    rows: RowReader
    target: Target
    standard: Standardisation
    pool: WorkerPool
    config: SweepConfig

    def accuracy(self, draws: np.ndarray, C: float) -> np.ndarray:
        """Return the accuracy (R,) of the heads fitted on `draws` (R, n) at C."""
        drawn = np.flatnonzero(draws.any(axis=0))
        config = self.config
        design, order = build_design(
            SelectedRows(self.rows, drawn), self.standard, self.pool, config.memory, dtype=config.dtype
        )
        no_fold = np.full(len(drawn), NO_FOLD, np.int16)
        target = self.target.take(drawn)
        problems = [TargetProblem(target, no_fold, sample_weight=draw[drawn] * 1.0) for draw in draws]
        tasks = [problem.tasks()[0].take(order) for problem in problems]
        groups, _ = group_tasks(tasks, 0, design.dtype, design.device)
        passes = Passes(design, self.pool)
        (solution,) = solve_path(passes, groups, [C], tol=config.tol, memory=config.memory)
        everything = streamed_like(design, self.rows)
        zeros = np.zeros(self.rows.shape[0], np.int8)  # predictions need no codes and no weights
        unlabelled = [Task(zeros, zeros, task.columns, zeros + NO_FOLD) for task in tasks]
        groups, _ = group_tasks(unlabelled, 0, everything.dtype, everything.device)
        fits = list(zip(groups, solution.coef, strict=True))
        correct, measured = np.zeros(len(draws)), np.zeros(len(draws))
        for start, stop, logits in Passes(everything, self.pool).held_out(fits):
            left = ~draws[:, start:stop] & self.target.labelled[start:stop]
            correct += ((_codes(logits[0]) == self.target.values[start:stop]) & left).sum(axis=1)
            measured += left.sum(axis=1)
        return correct / measured


def _codes(logits: torch.Tensor) -> np.ndarray:
    """Return the predicted codes (R, B) for logits (R, K, B)."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long().cpu().numpy()
    return logits.argmax(dim=1).cpu().numpy()
