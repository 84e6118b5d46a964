"""L-BFGS for many heads side by side, in its compact form, around a preconditioner.

With S, Y the last m steps and changes of the gradient, γ H0 the initial inverse Hessian, R the upper triangle
of SᵀY and E its diagonal (Byrd, Nocedal and Schnabel 1994, theorem 2.2, with γ H0 for γ I):

    H = γ H0 + [S  γ H0 Y] [ R⁻ᵀ (E + γ Yᵀ H0 Y) R⁻¹   −R⁻ᵀ ] [Sᵀ      ]
                           [ −R⁻¹                        0  ] [γ Yᵀ H0 ]

so that a direction costs two products with the history and a few m × m ones, whatever the number of heads.
γ = sᵀy / yᵀ H0 y of the newest step keeps the preconditioner's scale right; without it half of all steps at
large C were too long (10,000 rows, 1,280 features, 10 classes, 13 values of C: 130 passes became 71).

Shapes: A heads, N coefficients of a head, m steps remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class History:
    """The last m steps of A heads. A slot without a step holds zeros, and a 1 on R's diagonal."""

    def __init__(self, heads: int, size: int, memory: int, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = memory
        self.count = torch.zeros(heads, dtype=torch.long, device=device)
        self.S, self.Y, self.HY = (
            torch.zeros(heads, memory, size, dtype=dtype, device=device) for _ in range(3)
        )
        self.SY, self.YHY = (
            torch.zeros(heads, memory, memory, dtype=torch.float64, device=device) for _ in range(2)
        )
        self._new = self._y = None  # heads of a step whose products wait for the next direction

    def push(self, s: Tensor, y: Tensor, hy: Tensor, taken: Tensor) -> None:
        """Remember the steps s (A, N), changes y and H0 y of the heads `taken` (A,) bool.

        A pair without positive curvature, which only rounding makes, is passed over.
        """
        floor = 1e-10 * torch.linalg.vector_norm(s, dim=1) * torch.linalg.vector_norm(y, dim=1)
        self._new = (taken & ((s * y).sum(dim=1) > floor)).nonzero()[:, 0]
        self._y = y
        slot = self.count[self._new] % self.memory
        for kept, new in ((self.S, s), (self.Y, y), (self.HY, hy)):
            kept[self._new, slot] = new[self._new]

    def direction(self, g: Tensor, hg: Tensor) -> Tensor:
        """−H g (A, N) of the gradients g (A, N) with hg = H0 g."""
        a, b = self._dots(g)
        order = self._oldest_first()
        a, b = a.gather(1, order)[..., None], b.gather(1, order)[..., None]
        SY, YHY = _reordered(self.SY, order), _reordered(self.YHY, order)
        E, W = SY.diagonal(dim1=1, dim2=2), YHY.diagonal(dim1=1, dim2=2)
        newest = (self.count.clamp(max=self.memory) - 1).clamp(min=0)[:, None]
        gamma = torch.where(self.count[:, None] > 0, E.gather(1, newest) / W.gather(1, newest), 1.0)[
            ..., None
        ]
        R = SY.triu() + torch.diag_embed((E == 0).to(SY.dtype))
        x = torch.linalg.solve_triangular(R, a, upper=True)
        right = E[..., None] * x + gamma * (YHY @ x - b)
        p = torch.linalg.solve_triangular(R.mT, right, upper=False)
        back = order.argsort(dim=1)
        p, x = (part[..., 0].gather(1, back).to(g.dtype)[:, None] for part in (p, gamma * x))
        return (gamma[:, 0].to(g.dtype) * hg + (p @ self.S)[:, 0] - (x @ self.HY)[:, 0]).neg_()

    def _dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """S g and HY g (A, m) float64; on the way, the products of the step just pushed."""
        if self._new is None:
            return (self.S @ g[..., None])[..., 0].double(), (self.HY @ g[..., None])[..., 0].double()
        both = torch.stack([g, self._y], dim=2)
        with_s, with_hy = (self.S @ both).double(), (self.HY @ both).double()
        heads, slot = self._new, self.count[self._new] % self.memory
        self.SY[heads, :, slot] = with_s[heads, :, 1]
        self.YHY[heads, :, slot] = with_hy[heads, :, 1]
        self.YHY[heads, slot, :] = with_hy[heads, :, 1]
        self.count[heads] += 1
        self._new = self._y = None
        return with_s[..., 0], with_hy[..., 0]

    def rescale(self, change: Callable[[Tensor, Tensor], Tensor], apply: Callable[[Tensor], Tensor]) -> None:
        """Carry the steps over to another objective: y becomes change(s, y), H0 becomes `apply`."""
        for slot in range(self.memory):
            self.Y[:, slot] = change(self.S[:, slot], self.Y[:, slot])
            self.HY[:, slot] = apply(self.Y[:, slot])
        self.SY = (self.S @ self.Y.mT).double()
        self.YHY = (self.HY @ self.Y.mT).double()

    def select(self, heads: Tensor) -> History:
        """The history of `heads` (a,) alone, a copy."""
        part = object.__new__(History)
        part.memory, part._new, part._y = self.memory, None, None
        for name in ("count", "S", "Y", "HY", "SY", "YHY"):
            setattr(part, name, getattr(self, name)[heads])
        return part

    def put(self, heads: Tensor, part: History) -> None:
        """Write back what `select(heads)` gave. SY and YHY are made anew by `rescale`."""
        for name in ("count", "S", "Y"):
            getattr(self, name)[heads] = getattr(part, name)

    def _oldest_first(self) -> Tensor:
        """(A, m) slots in the order in which they were filled, empty ones last."""
        start = torch.where(self.count > self.memory, self.count % self.memory, 0)
        return (start[:, None] + torch.arange(self.memory, device=start.device)) % self.memory


def _reordered(square: Tensor, order: Tensor) -> Tensor:
    """square[:, order][:, :, order] for each head."""
    index = order[:, :, None].expand_as(square)
    return square.gather(1, index).gather(2, index.mT)
