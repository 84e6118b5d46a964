"""An approximate inverse Hessian for every task.

In the Gram matrix's eigenbasis (coordinates j with eigenvalues λ_j) the Hessian of a task's K columns is

    I + C Σ_i S_i ⊗ x_i x_iᵀ,    S_i = w_i (diag p_i − p_i p_iᵀ).

Its first r coordinates, where the data speak loudest, are kept exactly with the intercepts, as a block that
couples all columns, or one block per column where those are many. On the other coordinates the column's mean
curvature stands on the diagonal, 1 + C ā λ_j with ā = Σ_i S_i[k, k] / n. Böhning's (1992) bound p (1 − p) ≤ ½
would serve all columns with one matrix, but at large C it overrates curvature manifold. A softmax's steps
are made to sum to zero over its columns, as its coefficients and gradients do.

All rows count. A sample of them overrates the directions it happens to vary in: at 50,000 rows of 1,280
features and 10 classes, 13 values of C took 923 passes with 256 coordinates, a block per column, from 2,048
rows, and 318 with 55 coordinates, coupled, from all; more coordinates hardly help (305 with 78). That was
measured while the path fitted all rows as well as the folds.

Shapes: T tasks, K columns, F folds, G blocks of a task, j = K / G columns of a block, r coordinates, P =
width + 1 coefficients of a column (intercept last).
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-5  # relative to the diagonal, above the rounding of float32 sums; keeps blocks positive
LEAST = torch.finfo(torch.float64).tiny ** 0.5


class Preconditioner:
    """Inverse Hessians for the heads of one group at one C.

    Parameters
    ----------
    block : (T, G, j · (r + 1), j · (r + 1)) float64, Σ_i S_i ⊗ x_i x_iᵀ over the first r coordinates and a
        constant 1, as `Passes.curvatures` gives it.
    columns : K.
    values : (width,) float64, eigenvalues λ_j of the Gram matrix.
    rows : number of rows n.
    C : float
    heads_per_task : F + 1; all heads of a task share its matrices.
    """

    def __init__(
        self,
        block: Tensor,
        columns: int,
        values: Tensor,
        rows: int,
        C: float,
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
        diagonal[..., self.r] += LEAST
        if j > 1:  # equal intercepts change nothing, so any curvature there leaves the rest as it is
            between = exact.view(T, G, j, self.r + 1, j, self.r + 1)[..., self.r, :, self.r]
            between += offsets.mean(dim=2)[..., None, None] / j
        self.inverse = _inverse(exact).to(dtype)
        offsets = offsets.view(T, columns)
        self.tail = (1 / (1 + offsets[..., None] / rows * values[self.r :])).to(dtype)
        self._intercept = 1 / (offsets + LEAST)

    def intercept_inverse(self, heads: Tensor) -> Tensor:
        """(A, K) float64, inverse curvature of the intercepts alone."""
        return self._intercept[heads // self.heads_per_task]

    def apply(self, heads: Tensor, g: Tensor) -> Tensor:
        """H0 g for the gradients g (A, K·P) of `heads` (A,)."""
        T, G, size, _ = self.inverse.shape
        r, grid, K = self.r, self.heads_per_task, self.columns
        g = g.view(len(g), K, g.shape[1] // K)
        top = g.new_zeros(T * grid, K, r + 1)
        top[heads, :, :r] = g[..., :r]
        top[heads, :, r] = g[..., -1]
        solved = (top.view(T, grid, G, size).transpose(1, 2) @ self.inverse).transpose(1, 2)
        solved = solved.reshape(T * grid, K, r + 1)[heads]
        out = torch.empty_like(g)
        out[..., :r] = solved[..., :r]
        out[..., -1] = solved[..., r]
        torch.mul(g[..., r:-1], self.tail[heads // grid], out=out[..., r:-1])
        if K > 1:
            out -= out.mean(dim=1, keepdim=True)
        return out.view(len(g), g.shape[1] * g.shape[2])


def _inverse(blocks: Tensor) -> Tensor:
    """Inverses (T, G, m, m), the diagonals raised by RIDGE, or by more where rounding asks for it."""
    diagonal = blocks.diagonal(dim1=2, dim2=3)
    ridge = RIDGE
    while ridge < 1:
        factor, failed = torch.linalg.cholesky_ex(blocks + torch.diag_embed(ridge * diagonal))
        if not failed.any():
            return torch.cholesky_inverse(factor)
        ridge *= 10
    return torch.diag_embed(1 / diagonal)
