"""The scale of each block of inputs (a node, an image, the covariates), chosen by cross-validation.

All features are standardised, so that a block's influence grows with its width: one covariate beside 2,560
features has little. A scale s multiplies the standardised features of a block, which divides their penalty
by s²; a block of scale 0 is left out (the selection of groups of Head2Toe, Evci et al. 2022).

    start     all equal; each block with an equal share of the variance; each block alone
    search    of each block in turn: without it, a quarter of its scale, four times its scale

A choice takes the place of another one where the loss of held-out samples is lower by more than one standard
error of the paired differences. The search is by least squares, which is solved in closed form; what it finds
is then compared with its start and with equal scales by the loss of the head. Only products of rows with
each other are needed, which are Z Zᵀ = Σ s² Z_b Z_bᵀ, so that the features of up to `SAMPLES` samples are
read once.

Shapes: n samples, m of a fold, D features, b blocks, K outputs, G values of C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bottleneck.heads.config import AUTO_C, DECADE, SweepConfig
from bottleneck.heads.cross_validation import judge_of
from bottleneck.heads.ridge import answers_of
from bottleneck.heads.row_blocks import SelectedRows, read_checked, standardisation
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, InputBlock, RowReader
from bottleneck.threads import WorkerPool, serial_libraries

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

Losses = Callable[[np.ndarray, Sequence[float]], np.ndarray]
"""Products of rows (n, n), values of C → losses (G, n) of held-out samples."""


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
    search = _Search(SelectedRows(rows, drawn), blocks)
    by_squares, by_head = _LeastSquares(part), _OfHead(part, held_out, config)
    with reporter.step("Scaling blocks of inputs", unit="scales") as advance:
        with serial_libraries():  # their threads gain nothing on matrices of this size
            start, found = search.run(by_squares, advance)
        equal = np.ones(len(blocks))
        candidates = [scales for scales in (start, found) if (scales != equal).any()]
        if not candidates:
            return equal
        if (start == found).all():
            candidates = [found]
        return search.better(search.tried(equal, by_head), candidates, by_head).scales


class _LeastSquares:
    """Squared error of held-out samples by ridge regression on products of rows."""

    def __init__(self, problem: TargetProblem) -> None:
        self.answers, weights = answers_of(problem)
        self.penalty = 1 / np.maximum(weights, JITTER)  # a sample of weight 0 has next to no influence
        self.parts = [
            (np.flatnonzero(problem.fold != fold), np.flatnonzero(problem.fold == fold))
            for fold in np.unique(problem.fold)
        ]

    def __call__(self, product: np.ndarray, Cs: Sequence[float]) -> np.ndarray:
        """Return losses (G, n).

        The intercept b has no penalty: α = A⁻¹(y − b), 1ᵀα = 0, where A is the product plus the penalty.
        """
        from scipy.linalg import cho_factor, cho_solve  # heads on one block need none of scipy

        losses = np.zeros((len(Cs), len(product)))
        for train, held in self.parts:
            answers = np.hstack([self.answers[train], np.ones((len(train), 1))])
            for index, C in enumerate(Cs):
                A = product[np.ix_(train, train)]
                A[np.diag_indices(len(A))] += self.penalty[train] / C
                factor = cho_factor(A, lower=True, overwrite_a=True, check_finite=False)
                solved = cho_solve(factor, answers, check_finite=False)
                sums = solved.sum(axis=0)
                intercept = sums[:-1] / sums[-1]
                alpha = solved[:, :-1] - solved[:, -1:] * intercept
                outputs = product[np.ix_(held, train)] @ alpha + intercept
                losses[index, held] = np.square(self.answers[held] - outputs).mean(axis=1)
        return losses


class _OfHead:
    """Loss of held-out samples by the solver of the head."""

    def __init__(self, problem: TargetProblem, held_out: HeldOut, config: SweepConfig) -> None:
        self.problem, self.held_out = problem, held_out
        self.config = replace(config, standardize=False, tol=TOLERANCE)
        self.judge = judge_of(problem)

    def __call__(self, product: np.ndarray, Cs: Sequence[float]) -> np.ndarray:
        """Return losses (G, n)."""
        rows = ArrayRows(np.linalg.cholesky(product).astype(np.float32))  # their products are `product`
        losses = np.zeros((len(Cs), len(product)))
        for index, samples, outputs in self.held_out(rows, self.problem, Cs, self.config):
            losses[index, samples] = self.judge(self.problem.target.values[samples], outputs)[1]
        return losses


class _Search:
    def __init__(self, rows: RowReader, blocks: Sequence[InputBlock]) -> None:
        self.widths = np.array([block.stop - block.start for block in blocks])
        with WorkerPool() as pool:
            z = standardisation(rows, pool).apply(read_checked(rows, 0, rows.shape[0]))
        wide = (z[:, block.start : block.stop].astype(np.float64) for block in blocks)
        self.products = np.stack([part @ part.T for part in wide])  # (b, n, n)

    def run(self, losses: Losses, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Return the best scales (b,) to start from, and those that the search found from there.

        advance : is told of each block whose scales were tried.
        """
        count = len(self.widths)
        equal_shares = 1 / np.sqrt(self.widths)
        best = self.tried(np.ones(count), losses)
        for start in (equal_shares, *np.eye(count)):
            best = self.better(best, [start], losses)
            advance(1)
        first = best
        for _ in range(ROUNDS):
            before = best
            for block in range(count):
                near = range(max(0, best.C - 1), min(len(GRID), best.C + 2))
                best = self.better(best, list(self._moves(best.scales, block, equal_shares)), losses, near)
                advance(1)
            if best is before:
                break
        return first.scales, best.scales

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

    def better(
        self,
        best: _Tried,
        candidates: Sequence[np.ndarray],
        losses: Losses,
        Cs: Sequence[int] = range(len(GRID)),
    ) -> _Tried:
        """Return the best candidate if it beats `best`. Cs : indices of `GRID`."""
        tried = [self.tried(scales, losses, Cs) for scales in candidates]
        found = min(tried, key=lambda each: float(each.losses.mean()), default=best)
        return found if found.beats(best) else best

    def tried(self, scales: np.ndarray, losses: Losses, Cs: Sequence[int] = range(len(GRID))) -> _Tried:
        """Return the losses of held-out samples at the best of `Cs`, for `scales` times a common factor."""
        scales = scales * np.sqrt(self.widths.sum() / (scales**2 @ self.widths))
        product = np.tensordot(scales**2, self.products, 1)
        product[np.diag_indices(len(product))] += JITTER * max(product.trace() / len(product), JITTER)
        found = losses(product, [GRID[index] for index in Cs])
        best = int(found.mean(axis=1).argmin())
        return _Tried(scales, Cs[best], found[best])
