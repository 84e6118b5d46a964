"""The scale of each block of inputs (a node, an image, the covariates), chosen by cross-validation.

All features are standardised, so that a block's say grows with its width: one covariate beside 2,560 features
is hardly heard. A scale s multiplies the standardised features of a block, which divides their penalty by s²;
a block of scale 0 is left out (the selection of groups of Head2Toe, Evci et al. 2022).

    start     all equal; each block with an equal share of the variance; each block alone
    search    of each block in turn: without it, a quarter of its scale, four times its scale

A choice takes the place of another one where the log loss of held-out samples is lower by more than one
standard error of the paired differences. Only products of rows with each other are needed, which are
Z Zᵀ = Σ s² Z_b Z_bᵀ, so that the features of up to `SAMPLES` samples are read once.

Shapes: n samples, D features, b blocks, G values of C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bottleneck.heads.config import AUTO_C, DECADE, SweepConfig
from bottleneck.heads.cross_validation import judge_of
from bottleneck.heads.row_blocks import SelectedRows, read_checked, standardisation
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, InputBlock, RowReader
from bottleneck.threads import WorkerPool

SAMPLES = 500  # that the scales are chosen on
FACTOR = 4.0  # between neighbouring scales
ROUNDS = 3  # over all blocks
GRID = (*AUTO_C[DECADE::DECADE], 10.0)  # of C, a value per decade
TOLERANCE = 1e-3  # relative, of the objective: scales are compared, no head is kept
JITTER = 1e-6  # relative, on the diagonal of the products of rows

HeldOut = Callable[
    [RowReader, TargetProblem, Sequence[float], SweepConfig], Iterator[tuple[int, np.ndarray, np.ndarray]]
]
"""Rows, problem, ascending values of C → index of C, samples (B,), outputs (B, K) of heads without them."""


@dataclass(frozen=True)
class _Tried:
    """Scales (b,), the index of their best C, and the loss (n,) of each held-out sample there."""

    scales: np.ndarray
    C: int
    losses: np.ndarray

    def beats(self, other: _Tried) -> bool:
        """Return whether the loss is lower by more than a standard error of the paired differences."""
        gain = other.losses - self.losses
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        return bool(gain.mean() > error)


def choose_scales(
    rows: RowReader,
    blocks: Sequence[InputBlock],
    problem: TargetProblem,
    held_out: HeldOut,
    config: SweepConfig,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> np.ndarray:
    """Return the scale (b,) of each block, Σ s² · width = D; ones where no fold holds a sample out.

    rows : (n, D), of the n samples of `problem`. held_out : the solver. seed : of the draw of samples.
    """
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(problem.fold != NO_FOLD))
    most = max(2, min(SAMPLES, config.memory // (16 * rows.shape[1])))
    drawn = np.sort(drawn[:most])
    if len(np.unique(problem.fold[drawn])) < 2:
        return np.ones(len(blocks))
    weight = problem.sample_weight
    part = replace(
        problem,
        target=problem.target.take(drawn),
        fold=problem.fold[drawn],
        sample_weight=None if weight is None else weight[drawn],
    )
    search = _Search(SelectedRows(rows, drawn), blocks, part, held_out, config)
    with reporter.step("Scaling blocks of inputs", unit="scales") as advance:
        return search.run(advance)


class _Search:
    def __init__(
        self,
        rows: RowReader,
        blocks: Sequence[InputBlock],
        problem: TargetProblem,
        held_out: HeldOut,
        config: SweepConfig,
    ) -> None:
        self.problem, self._held_out = problem, held_out
        self.config = replace(config, standardize=False, tol=TOLERANCE)
        self.judge = judge_of(problem)
        self.widths = np.array([block.stop - block.start for block in blocks])
        with WorkerPool() as pool:
            z = standardisation(rows, pool).apply(read_checked(rows, 0, rows.shape[0]))
        wide = (z[:, block.start : block.stop].astype(np.float64) for block in blocks)
        self.products = np.stack([part @ part.T for part in wide])  # (b, n, n)

    def run(self, advance: Callable[[int], None]) -> np.ndarray:
        """Return the chosen scales (b,). advance : is told of each block whose scales were tried."""
        count = len(self.widths)
        equal_shares = 1 / np.sqrt(self.widths)
        best = self._try(np.ones(count), range(len(GRID)))
        for start in (equal_shares, *np.eye(count)):
            best = self._better(best, [start], range(len(GRID)))
            advance(1)
        for _ in range(ROUNDS):
            before = best
            for block in range(count):
                best = self._better(best, list(self._moves(best.scales, block, equal_shares)))
                advance(1)
            if best is before:
                break
        return best.scales

    def _moves(self, scales: np.ndarray, block: int, equal_shares: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the scales that differ in one block."""
        others = np.arange(len(scales)) != block
        if not scales[others].any():
            return
        values = [0.0, scales[block] / FACTOR, scales[block] * FACTOR]
        if not scales[block]:  # as much variance as one of the others has, and a 16th of it
            share = np.sqrt((scales[others] ** 2 * self.widths[others])[scales[others] > 0].mean())
            values = [share * equal_shares[block] / FACTOR, share * equal_shares[block]]
        for value in values:
            yield np.where(others, scales, value)

    def _better(
        self, best: _Tried, candidates: Sequence[np.ndarray], Cs: Sequence[int] | None = None
    ) -> _Tried:
        """Return the best candidate if it beats `best`. Cs : indices of `GRID`; None is those about its C."""
        near = range(max(0, best.C - 1), min(len(GRID), best.C + 2))
        tried = [self._try(scales, near if Cs is None else Cs) for scales in candidates]
        found = min(tried, key=lambda each: float(each.losses.mean()), default=best)
        return found if found.beats(best) else best

    def _try(self, scales: np.ndarray, Cs: Sequence[int]) -> _Tried:
        """Return the losses of held-out samples at the best of `Cs`, for `scales` times a common factor."""
        scales = scales * np.sqrt(self.widths.sum() / (scales**2 @ self.widths))
        product = np.tensordot(scales**2, self.products, 1)
        product[np.diag_indices(len(product))] += JITTER * max(product.trace() / len(product), JITTER)
        rows = ArrayRows(np.linalg.cholesky(product).astype(np.float32))  # their products are `product`
        losses = np.zeros((len(Cs), len(product)))
        values = [GRID[index] for index in Cs]
        for index, samples, outputs in self._held_out(rows, self.problem, values, self.config):
            losses[index, samples] = self.judge(self.problem.target.values[samples], outputs)[1]
        best = int(losses.mean(axis=1).argmin())
        return _Tried(scales, Cs[best], losses[best])
