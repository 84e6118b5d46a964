"""H0, an approximate inverse Hessian for every task. See (2) of the package's page.

Shapes: T tasks, K columns, F folds, G blocks of a task, j = K / G columns of a block (j = 1, or j = K where
columns are coupled), r leading coordinates, P coefficients of a column (intercept last).
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-5  # relative to the diagonal; above the rounding of float32 sums, so that blocks stay positive
TINY = torch.finfo(torch.float64).tiny ** 0.5


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

    def __init__(
        self,
        block: Tensor,
        values: Tensor,
        *,
        C: float,
        rows: int,
        columns: int,
        heads_per_task: int,
        dtype: torch.dtype,
    ) -> None:
        T, G, size, _ = block.shape
        j, self.columns, self.heads_per_task = columns // G, columns, heads_per_task
        self.r = size // j - 1
        exact = C * block
        diagonal = exact.diagonal(dim1=2, dim2=3).view(T, G, j, self.r + 1)
        offsets = diagonal[..., self.r].clone()
        diagonal[..., : self.r] += 1
        diagonal[..., self.r] += TINY
        if j > 1:  # equal intercepts change no probability; a curvature there makes the block invertible
            between = exact.view(T, G, j, self.r + 1, j, self.r + 1)[..., self.r, :, self.r]
            between += offsets.mean(dim=2)[..., None, None] / j
        self.inverse = _inverse(exact).to(dtype)
        offsets = offsets.view(T, columns)
        self.tail = (1 / (1 + offsets[..., None] / rows * values[self.r :])).to(dtype)
        self._intercept = 1 / (offsets + TINY)

    def intercept_inverse(self, heads: Tensor) -> Tensor:
        """Return (A, K) float64, the inverse curvature of the intercepts alone."""
        return self._intercept[heads // self.heads_per_task]

    def apply(self, heads: Tensor, g: Tensor) -> Tensor:
        """Return H0 g (A, K·P) for the gradients g (A, K·P) of `heads` (A,)."""
        T, G, size, _ = self.inverse.shape
        r, F, K = self.r, self.heads_per_task, self.columns
        g = g.view(len(g), K, g.shape[1] // K)
        top = g.new_zeros(T * F, K, r + 1)
        top[heads, :, :r] = g[..., :r]
        top[heads, :, r] = g[..., -1]
        solved = (top.view(T, F, G, size).transpose(1, 2) @ self.inverse).transpose(1, 2)
        solved = solved.reshape(T * F, K, r + 1)[heads]
        out = torch.empty_like(g)
        out[..., :r] = solved[..., :r]
        out[..., -1] = solved[..., r]
        torch.mul(g[..., r:-1], self.tail[heads // F], out=out[..., r:-1])
        if K > 1:
            out -= out.mean(dim=1, keepdim=True)
        return out.view(len(g), g.shape[1] * g.shape[2])


def _inverse(blocks: Tensor) -> Tensor:
    """Return the inverses (T, G, m, m). Diagonals are raised by RIDGE, or more where rounding requires it."""
    diagonal = blocks.diagonal(dim1=2, dim2=3)
    ridge = RIDGE
    while ridge < 1:
        factor, failed = torch.linalg.cholesky_ex(blocks + torch.diag_embed(ridge * diagonal))
        if not failed.any():
            return torch.cholesky_inverse(factor)
        ridge *= 10
    return torch.diag_embed(1 / diagonal)
