"""Heads at one C on their way down: trial points out, losses and gradients in. What converges leaves.

Shapes: A heads still on the way, K columns, P coefficients of a column (intercept last), N = K · P.

L-BFGS for many heads side by side, in its compact form, around a preconditioner.

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

from bottleneck.heads.solver.preconditioner import Preconditioner


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


SUFFICIENT = 1e-4  # Armijo's constant
MOST_CUTS = 15  # of one step; beyond it rounding decides, not the function
WINDOW = 5  # accepted steps over which the decrease is watched, and compared with that of as many before
SLOWEST = 0.95  # ratio of the two that is believed
MARGIN = 5.0  # by which the model's expected decrease must undercut the tolerance
GAIN, LEAST_GAIN = 10.0, 0.05  # see `_bound`
CROWDED = 0.75  # share of heads on the way below which the others' memory is given up


class BatchedLBFGS:
    """Minimises C · loss + ½ ‖w‖² for some heads of a group.

    A head has converged when its objective is within `tol` (relative) of the optimum: either ½ ‖∇F‖² proves
    it (F is 1-strongly convex in w), or neither the L-BFGS model nor the last steps promise more: not what
    they gained, nor all that is to come if gains go on to shrink as they did.

    Parameters
    ----------
    heads : (A,) numbers of the heads in their group.
    coef : (A, K, P), where to start.
    null : (A,) float64, the objective with intercepts alone.
    history : of earlier steps of these heads, already carried over to this C; updated in place.
    steps : passes after which it ends as it is.

    Attributes
    ----------
    coef : (A, K, P), objective : (A,) float64, converged : (A,) bool, of all heads it began with.
    """

    def __init__(
        self,
        heads: Tensor,
        coef: Tensor,
        null: Tensor,
        C: float,
        history: History,
        prec: Preconditioner,
        tol: float,
        steps: int,
    ) -> None:
        self.C, self.prec, self.tol, self.steps_left = C, prec, tol, steps
        self.coef, self.null = coef.clone(), null
        self._whole_history, self._all_heads = history, heads
        self.objective = torch.full((len(heads),), torch.inf, dtype=torch.float64, device=coef.device)
        self.converged = torch.zeros(len(heads), dtype=torch.bool, device=coef.device)
        self._noise = 4 * torch.finfo(coef.dtype).eps
        # The heads on the way, each with the state of its walk; `_place` says where they stand among all.
        self._place = torch.arange(len(heads), device=coef.device)
        self._history = history
        self._x = coef.flatten(1)
        self._f = self.objective.clone()
        self._g, self._step = torch.zeros_like(self._x), torch.zeros_like(self._x)
        self._slope, self._length = torch.zeros_like(self._f), torch.ones_like(self._f)
        self._cuts = torch.zeros_like(self._place)
        self._recent = self._f[:, None].repeat(1, 2 * WINDOW)
        self._begun = False
        self.active = torch.ones_like(self.converged)

    @property
    def heads(self) -> Tensor:
        """(A,) numbers, in their group, of the heads on the way."""
        return self._all_heads[self._place[self.active]]

    def trial(self) -> Tensor:
        """(A, K, P) where the heads on the way want their loss and gradient."""
        trial = self._x + self._length[:, None].to(self._x.dtype) * self._step
        return trial[self.active].view(-1, *self.coef.shape[1:])

    def update(self, trial: Tensor, loss: Tensor, slope: Tensor) -> None:
        """Take in loss (A,) and its gradient (A, K, P) at the trial points (A, K, P)."""
        trial, objective, gradient = self._penalised(trial, loss, slope)
        allowed = self._f + SUFFICIENT * self._length * self._slope + self._noise * objective.abs()
        accepted = self.active & (objective <= allowed)
        chosen = accepted[:, None]
        if self._begun:
            s = torch.where(chosen, trial - self._x, 0)
            y = torch.where(chosen, gradient - self._g, 0)
            self._history.push(s, y, self._apply(y), accepted)
        self._begun = True
        self._shorten(self.active & ~accepted, objective)
        self._x, self._g = torch.where(chosen, trial, self._x), torch.where(chosen, gradient, self._g)
        self._f = torch.where(accepted, objective, self._f)
        self._aim(accepted)
        self.steps_left -= 1
        self._settle()

    def _penalised(self, trial: Tensor, loss: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points, objectives and gradients of all heads kept; those not asked for get zeros."""
        weights = trial.clone()
        weights[..., -1] = 0
        objective = self.C * loss + 0.5 * weights.double().square().sum(dim=(1, 2))
        gradient = (self.C * slope + weights).to(trial.dtype)
        return (
            _spread(trial.flatten(1), self.active),
            _spread(objective, self.active),
            _spread(gradient.flatten(1), self.active),
        )

    def _shorten(self, heads: Tensor, objective: Tensor) -> None:
        """Cut the steps that were too long to the minimum of the parabola through what is known."""
        t = self._length
        parabola = -self._slope * t * t / (2 * (objective - self._f - self._slope * t))
        parabola = torch.where(parabola.isfinite(), parabola, 0.1 * t)
        self._length = torch.where(heads, parabola.clamp(min=0.1 * t, max=0.5 * t), t)
        self._cuts += heads
        self.active = self.active & (self._cuts <= MOST_CUTS)

    def _aim(self, accepted: Tensor) -> None:
        """The next direction of heads that moved, or their leave."""
        step = self._history.direction(self._g, self._apply(self._g))
        self._step = torch.where(accepted[:, None], step, self._step)
        slope = (self._g * self._step).sum(dim=1, dtype=torch.float64)
        left = self._left()
        self._recent = torch.where(
            accepted[:, None], torch.cat([self._recent[:, 1:], self._f[:, None]], dim=1), self._recent
        )
        self._slope = torch.where(accepted, slope, self._slope)
        self._length = torch.where(accepted, 1.0, self._length)
        self._cuts *= ~accepted
        bound = self._bound()
        likely = (-0.5 * MARGIN * slope <= bound) & (left <= bound)
        done = accepted & ((self._distance() <= bound) | likely)
        self.converged[self._place[done]] = True
        self.active = self.active & ~done

    def _left(self) -> Tensor:
        """(A,) the last steps' decrease d, or what is to come if the next are ρ d, ρ² d …, where it is more.

        Where convergence is slow the sum, ρ / (1 − ρ) · d, is several times d.
        """
        before, since = self._recent[:, 0] - self._recent[:, WINDOW], self._recent[:, WINDOW] - self._f
        ratio = (since / before).nan_to_num(0.0).clamp(0.0, SLOWEST)
        return since * (ratio / (1 - ratio)).clamp(min=1.0)

    def _bound(self) -> Tensor:
        """(A,) how far an objective may be from its optimum.

        At small C nearly all of it is what the intercepts alone leave; the tolerance is then held against
        what the weights gain, or heads would stop before they have learned anything.
        """
        gain = GAIN * (self.null[self._place] - self._f)
        return self.tol * self._f.abs().minimum(gain.clamp(min=LEAST_GAIN * self._f.abs()))

    def _distance(self) -> Tensor:
        """(A,) bound on the objective's distance from its optimum: F is 1-strongly convex in w."""
        square = self._g.double().square().view(len(self._g), *self.coef.shape[1:])
        offsets = square[..., -1] * self.prec.intercept_inverse(self._all_heads[self._place])
        return 0.5 * (square[..., :-1].sum(dim=(1, 2)) + offsets.sum(dim=1))

    def _settle(self) -> None:
        """Write down where everybody is; forget those who left once they are many."""
        if self.steps_left <= 0:
            self.active = torch.zeros_like(self.active)
        left = int(self.active.sum())
        if left and left > CROWDED * len(self.active):
            return
        self.coef[self._place] = self._x.view(-1, *self.coef.shape[1:])
        self.objective[self._place] = self._f
        if self._history is not self._whole_history:
            self._whole_history.put(self._place, self._history)
        kept = self.active.nonzero()[:, 0]
        self._place = self._place[kept]
        self._history = (
            self._whole_history.select(self._place)
            if self._history is self._whole_history
            else (self._history.select(kept))
        )
        for name in ("_x", "_f", "_g", "_step", "_slope", "_length", "_cuts", "_recent", "active"):
            setattr(self, name, getattr(self, name)[kept])

    def _apply(self, g: Tensor) -> Tensor:
        return self.prec.apply(self._all_heads[self._place], g)


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """`values` (a, …) at the places where `where` (A,) is True, zeros elsewhere."""
    if len(values) == len(where):
        return values
    out = values.new_zeros(len(where), *values.shape[1:])
    out[where] = values
    return out
