"""H0, an approximate inverse Hessian for every task. See (2) of the package's page.

Shapes: T tasks, K columns, F folds, G blocks of a task, j = K / G columns of a block (j = 1, or j = K where
columns are coupled), r leading coordinates, P coefficients of a column (intercept last).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.heads.solver.arrays import Array, cast, inverse_of_positive, library, quiet, zeros_like

RIDGE = 1e-5  # relative to the diagonal; above the rounding of float32 sums, so that blocks stay positive
TINY = np.finfo(np.float64).tiny ** 0.5


class Preconditioner:
    """Inverse Hessians for the heads of one group at one C.

    Parameters
    ----------
    block : (T, G, j · (r + 1), j · (r + 1)) float64, Σ_i S_i ⊗ x_i x_iᵀ over the first r coordinates and a
        constant 1, from `Passes.curvatures`.
    values : (P − 1,) float64, eigenvalues of the Gram matrix.
    rows : n. columns : K.
    heads_per_task : F, or 1 without folds; all heads of a task share its matrices.
    """

    @quiet
    def __init__(
        self,
        block: Array,
        values: Array,
        *,
        C: float,
        rows: int,
        columns: int,
        heads_per_task: int,
        dtype: DTypeLike,
    ) -> None:
        T, G, size, _ = block.shape
        j, self.columns, self.heads_per_task = columns // G, columns, heads_per_task
        self.r = size // j - 1
        exact = C * block
        index = np.arange(size)
        intercepts = index % (self.r + 1) == self.r
        at, others = index[intercepts], index[~intercepts]
        offsets = exact[:, :, at, at]  # (T, G, j)
        exact[:, :, others, others] += 1
        exact[:, :, at, at] += TINY
        if j > 1:  # equal intercepts change no probability; a curvature there makes the block invertible
            exact[:, :, at[:, None], at] += offsets.mean(axis=2)[..., None, None] / j
        self.inverse = cast(_inverse(exact), dtype)
        offsets = offsets.reshape(T, columns)
        self.tail = cast(1 / (1 + offsets[..., None] / rows * values[self.r :]), dtype)
        self._intercept = 1 / (offsets + TINY)

    def intercept_inverse(self, heads: Array) -> Array:
        """Return (A, K) float64, the inverse curvature of the intercepts alone."""
        return self._intercept[heads // self.heads_per_task]

    @quiet
    def apply(self, heads: Array, g: Array) -> Array:
        """Return H0 g (A, K·P) for the gradients g (A, K·P) of `heads` (A,)."""
        T, G, size, _ = self.inverse.shape
        r, F, K = self.r, self.heads_per_task, self.columns
        xp = library(g)
        g = g.reshape(len(g), K, g.shape[1] // K)
        top = zeros_like(g, T * F, K, r + 1)
        top[heads, :, :r] = g[..., :r]
        top[heads, :, r] = g[..., -1]
        solved = xp.swapaxes(xp.swapaxes(top.reshape(T, F, G, size), 1, 2) @ self.inverse, 1, 2)
        solved = solved.reshape(T * F, K, r + 1)[heads]
        out = xp.empty_like(g)
        out[..., :r] = solved[..., :r]
        out[..., -1] = solved[..., r]
        xp.multiply(g[..., r:-1], self.tail[heads // F], out=out[..., r:-1])
        if K > 1:
            out -= out.mean(axis=1, keepdims=True)
        return out.reshape(len(g), g.shape[1] * g.shape[2])


def _inverse(blocks: Array) -> Array:
    """Return the inverses (T, G, m, m). Diagonals are raised by RIDGE, or more where rounding requires it."""
    index = np.arange(blocks.shape[-1])
    diagonal = blocks[..., index, index]
    ridge = RIDGE
    while ridge < 1:
        raised = blocks * 1
        raised[..., index, index] += ridge * diagonal
        inverse = inverse_of_positive(raised)
        if inverse is not None:
            return inverse
        ridge *= 10
    inverse = 0 * blocks
    inverse[..., index, index] = 1 / diagonal
    return inverse
