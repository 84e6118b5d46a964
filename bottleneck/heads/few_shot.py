"""How accurate a head is with k images per class: many small draws, fitted side by side.

Shapes: n samples, D features, C classes, R repeats, K columns of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bottleneck.errors import FitError
from bottleneck.heads.logistic import DEFAULT, SweepConfig
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.heads.solver.design import Standardisation, build_design, standardisation, streamed_like
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import group_tasks, solve_path
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, Task
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, RowReader, Target
from bottleneck.threads import WorkerPool

LARGEST_C = 1.0


def shot_scores(
    rows: RowReader,
    target: Target,
    C: float,
    shots: Sequence[int],
    repeats: int,
    seed: int = 0,
    config: SweepConfig = DEFAULT,
    reporter: Reporter = SILENT,
) -> np.ndarray:
    """(len(shots), R) accuracy on the samples that were not drawn, of heads on k samples per class.

    Parameters
    ----------
    rows : (n, D) to draw from; they are standardised by all of them, which needs no label.
    target : class target of the n rows.
    C : chosen for all n samples. The penalty keeps its weight beside one sample's loss: C n / (samples
        drawn), but at most 1.

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
    found = []
    with WorkerPool(config.device) as crew:
        standard = standardisation(rows, crew, block_size(rows.shape[1]), None, config.dtype)
        with reporter.step("Drawing shots", total=len(shots), unit="sizes") as advance:
            for k in shots:
                draws = _draws(target, k, repeats, np.random.default_rng([seed, k]))
                stronger = min(LARGEST_C, C * int(target.labelled.sum()) / int(draws[0].sum()))
                found.append(_scores(rows, target, draws, stronger, standard, crew, config))
                advance(1)
    return np.array(found)


def _draws(target: Target, k: int, repeats: int, generator: np.random.Generator) -> np.ndarray:
    """(R, n) bool, k samples of every class (all of a class that has fewer)."""
    drawn = np.zeros((repeats, len(target.values)), bool)
    for code in np.unique(target.values[target.labelled]):
        members = np.flatnonzero(target.values == code)
        for row in drawn:
            row[generator.permutation(members)[:k]] = True
    return drawn


def _scores(
    rows: RowReader,
    target: Target,
    draws: np.ndarray,
    C: float,
    standard: Standardisation,
    crew: WorkerPool,
    config: SweepConfig,
) -> np.ndarray:
    """(R,) accuracy of one head per draw on what it leaves."""
    union = np.flatnonzero(draws.any(axis=0))
    picked = ArrayRows(_pick(rows, union))
    design, order = build_design(picked, standard, crew, config.memory, None, config.dtype)
    everyone = np.full(len(union), NO_FOLD, np.int16)
    asked = [TargetProblem(target.take(union), everyone, sample_weight=drawn[union] * 1.0) for drawn in draws]
    tasks = [question.tasks()[0].arranged(order) for question in asked]
    groups, _ = group_tasks(tasks, 0, design)
    (solution,) = solve_path(Passes(design, crew), groups, [C], config.tol, config.memory)
    whole = streamed_like(design, rows)
    nothing = np.zeros(rows.shape[0], np.int8)
    asked_of_all = [Task(nothing, nothing, task.columns, nothing + NO_FOLD) for task in tasks]
    scored, _ = group_tasks(asked_of_all, 0, whole)
    hits, seen = np.zeros(len(draws)), np.zeros(len(draws))
    for start, stop, logits in Passes(whole, crew).held_out(list(zip(scored, solution.coef, strict=True))):
        left = ~draws[:, start:stop] & target.labelled[start:stop]
        hits += ((_answers(logits[0]) == target.values[start:stop]) & left).sum(axis=1)
        seen += left.sum(axis=1)
    return hits / seen


def _answers(logits: torch.Tensor) -> np.ndarray:
    """(R, B) codes of logits (R, K, B)."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long().cpu().numpy()
    return logits.argmax(dim=1).cpu().numpy()


def _pick(rows: RowReader, which: np.ndarray) -> np.ndarray:
    """The rows `which` (ascending), read block by block."""
    parts = []
    for start, stop in blocks(rows, block_size(rows.shape[1])):
        here = which[np.searchsorted(which, start) : np.searchsorted(which, stop)]
        if len(here):
            parts.append(read_checked(rows, start, stop)[here - start])
    return np.concatenate(parts)
