"""Fit the heads that `fit-head --head` names, on all targets of one node, with cross-validation or k shots.

The accuracy at k samples per class is that of heads fitted on many random draws, side by side.

Shapes: n samples, V views of a sample, D features, K classes, labels or columns of a head, R draws, m samples
that any draw has, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.errors import FitError, counted
from bottleneck.heads.block_scales import choose_scales
from bottleneck.heads.config import DEFAULT, SweepConfig
from bottleneck.heads.cross_validation import HeldOutLogits, cross_validate
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.logistic import held_out_logits, sweep
from bottleneck.heads.ridge import held_out_values, ridge_sweep
from bottleneck.heads.row_blocks import SelectedRows, Standardisation, ViewRows, standardisation
from bottleneck.heads.solver.arrays import Array, to_numpy
from bottleneck.heads.solver.design import build_design, streamed_like
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import solve_path
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, Task, group_tasks
from bottleneck.names import LINEAR_HEADS, SCALES
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import InputBlock, RowReader, Target
from bottleneck.threads import WorkerPool

if TYPE_CHECKING:
    from bottleneck.heads.estimator import ClassHead

ABSENT = -30.0  # logit of a class that a fold's training samples lack
MAX_C = 1.0


def fit_kind(
    kind: str,
    rows: RowReader,
    problems: Sequence[TargetProblem],
    C: str | float | Sequence[float],
    config: SweepConfig,
    views: RowReader | None = None,
    scales: Mapping[str, float] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[HeadFit]:
    """Fit one kind of head on all problems, which are on the same n samples.

    Where `rows` have several blocks of inputs (`rows.inputs`), linear heads give each a scale, chosen by
    cross-validation for every problem (`block_scales`), which is the setting "scales" of the head.

    C : as of `logistic.sweep`, for linear heads.
    problems : only of class targets for kinds that are not linear.
    rows : (n, D). views : (n, V, D), on which linear heads are fitted instead; they are scored on `rows`.
    scales : of the blocks by name, in place of chosen ones; 1 for a block that is not named.
    seed : of the samples that scales are chosen on, and of networks.
    """
    if kind not in LINEAR_HEADS:
        heads = []
        with reporter.step(f"Fitting {kind} heads", total=len(problems), unit="targets") as advance:
            for problem in problems:
                heads.append(_fit_classes(kind, rows, problem, seed))
                advance(1)
        return heads
    blocks = getattr(rows, "inputs", ())
    if len(blocks) < 2:
        return _fit_linear(kind, rows, problems, C, config, None, views, reporter)
    heads = []
    for problem in problems:
        if scales is None and config.scales == SCALES[0]:
            solve = held_out_values if _is_ridge(kind, problem) else held_out_logits
            factors = choose_scales(rows, blocks, problem, solve, config, seed, reporter)
        else:
            factors = _factors(blocks, scales or {})
        weight = _weight(blocks, factors)
        (head,) = _fit_linear(kind, rows, [problem], C, config, weight, views, reporter)
        named = {block.name: float(scale) for block, scale in zip(blocks, factors, strict=True)}
        heads.append(replace(head, settings={**head.settings, "scales": named}))
    return heads


def _is_ridge(kind: str, problem: TargetProblem) -> bool:
    return kind == "ridge" or problem.target.kind == "regression"


def _factors(blocks: Sequence[InputBlock], scales: Mapping[str, float]) -> np.ndarray:
    """Return the scale (b,) of each block; 1 for one that is not named."""
    return np.array([scales.get(block.name, 1.0) for block in blocks])


def _weight(blocks: Sequence[InputBlock], scales: np.ndarray) -> np.ndarray | None:
    """Return the factor (D,) of each standardised feature; None where all are 1."""
    if (scales == 1).all():
        return None
    return np.repeat(scales, [block.stop - block.start for block in blocks])


def _fit_linear(
    kind: str,
    rows: RowReader,
    problems: Sequence[TargetProblem],
    C: str | float | Sequence[float],
    config: SweepConfig,
    weight: np.ndarray | None,
    views: RowReader | None,
    reporter: Reporter,
) -> list[HeadFit]:
    trained, plain = (rows, None) if views is None else (ViewRows(views), rows)
    ridge = [i for i, problem in enumerate(problems) if _is_ridge(kind, problem)]
    logistic = [i for i in range(len(problems)) if i not in ridge]
    fits: dict[int, HeadFit] = {}
    for solve, indices in ((sweep, logistic), (ridge_sweep, ridge)):
        if indices:
            chosen = [problems[i] for i in indices]
            found = solve(trained, chosen, C, config, plain=plain, weight=weight, reporter=reporter)
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
    """Return the function that fits a new head of the kind to rows (m, D) and class codes (m,).

    These kinds are estimators of scikit-learn, which takes a second of a core to import: only where needed.
    """
    from bottleneck.heads.baselines import KNNHead, NearestMeanHead

    if kind == "knn":
        return lambda rows, codes: KNNHead().fit(rows, codes)
    if kind == "nearest-mean":
        return lambda rows, codes: NearestMeanHead().fit(rows, codes)
    from bottleneck.heads.mlp import MLPHead

    weight = problem.class_weight
    return lambda rows, codes: MLPHead(class_weight=weight, random_state=seed).fit(rows, codes)


def shot_scores(
    rows: RowReader,
    target: Target,
    C: float,
    shots: Sequence[int],
    *,
    repeats: int,
    scales: Mapping[str, float] | None = None,
    seed: int = 0,
    config: SweepConfig = DEFAULT,
    reporter: Reporter = SILENT,
) -> np.ndarray:
    """Return the accuracy (len(shots), R) of heads fitted on k samples per class, on the samples not drawn.

    Parameters
    ----------
    rows : (n, D) to draw from. Features are standardised over all of them, which needs no labels.
    target : class target of the n rows.
    C : chosen for all n samples. A draw is fitted at C · n / (samples drawn), at most 1 or C, so that the
        penalty keeps its weight relative to the sum of losses.
    repeats : R. scales : of blocks of inputs by name.

    Raises
    ------
    FitError
        No class has more samples than the largest k, so that none is left to measure on.
    """
    counts = np.bincount(target.values[target.labelled], minlength=1)
    if counts.max() <= max(shots):
        raise FitError(
            f"The largest class of target {target.name!r} has {counted(counts.max(), 'sample')} to train on; "
            f"{counted(max(shots), 'shot')} would leave none to measure on.",
            f"Use --shots below {counts.max()}.",
        )
    scores = []
    with WorkerPool(config.device) as pool:
        blocks = getattr(rows, "inputs", ())
        weight = _weight(blocks, _factors(blocks, scales or {}))
        standard = replace(standardisation(rows, pool, None, config.dtype), weight=weight)
        heads = DrawnHeads(rows, target, standard, pool, config)
        with reporter.step("Drawing shots", total=len(shots), unit="sizes") as advance:
            for k in shots:
                draws = draw_shots(target, k, repeats, np.random.default_rng([seed, k]))
                draw_C = min(max(MAX_C, C), C * int(target.labelled.sum()) / int(draws[0].sum()))
                scores.append(heads.accuracy(draws, draw_C))
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
class DrawnHeads:
    """Fits one head per draw of samples, all side by side, and applies each to all samples.

    rows : (n, D). target : class target of the n rows. standard : of the features, over all rows.
    """

    rows: RowReader
    target: Target
    standard: Standardisation
    pool: WorkerPool
    config: SweepConfig = DEFAULT

    def logits(self, draws: np.ndarray, C: float) -> Iterator[tuple[int, int, Array]]:
        """Yield (start, stop, logits (R, K, B)) of heads fitted on `draws` (R, n) bool at C, block by block.

        Two classes have one column, the logit of the second.
        """
        drawn = np.flatnonzero(draws.any(axis=0))
        config = self.config
        design, order = build_design(
            SelectedRows(self.rows, drawn),
            self.standard,
            self.pool,
            config.memory,
            dtype=config.dtype,
            columns=len(draws) * len(self.target.class_names),
        )
        no_fold = np.full(len(drawn), NO_FOLD, np.int16)
        target = self.target.take(drawn)
        problems = [TargetProblem(target, no_fold, sample_weight=draw[drawn] * 1.0) for draw in draws]
        tasks = [problem.tasks()[0].take(order) for problem in problems]
        groups, _ = group_tasks(tasks, 0, design.dtype, design.place)
        passes = Passes(design, self.pool)
        (solution,) = solve_path(passes, groups, [C], tol=config.tol, memory=config.memory)
        everything = streamed_like(design, self.rows)
        zeros = np.zeros(self.rows.shape[0], np.int8)  # predictions need no codes and no weights
        unlabelled = [Task(zeros, zeros, task.columns, zeros + NO_FOLD) for task in tasks]
        groups, _ = group_tasks(unlabelled, 0, everything.dtype, everything.place)
        fits = list(zip(groups, solution.coef, strict=True))
        for start, stop, logits in Passes(everything, self.pool).held_out(fits):
            yield start, stop, logits[0]

    def accuracy(self, draws: np.ndarray, C: float) -> np.ndarray:
        """Return the accuracy (R,) of the heads on the labelled samples that their draws leave out."""
        correct, measured = np.zeros(len(draws)), np.zeros(len(draws))
        for start, stop, logits in self.logits(draws, C):
            left = ~draws[:, start:stop] & self.target.labelled[start:stop]
            correct += ((_codes(logits) == self.target.values[start:stop]) & left).sum(axis=1)
            measured += left.sum(axis=1)
        return correct / measured


def _codes(logits: Array) -> np.ndarray:
    """Return the predicted codes (R, B) for logits (R, K, B)."""
    if logits.shape[1] == 1:
        return to_numpy(logits[:, 0] > 0).astype(np.int64)
    return to_numpy(logits.argmax(axis=1))
