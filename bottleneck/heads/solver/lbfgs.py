"""Batched L-BFGS with a line search for several heads at one C. See (3) of the package's page.

Shapes: A heads, K columns, P coefficients of a column (intercept last), N = K · P, m steps remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bottleneck.heads.solver.preconditioner import Preconditioner

ARMIJO = 1e-4  # share of the expected decrease that a step must reach
MAX_CUTS = 15  # of one step; after that, rounding decides and not the function
WINDOW = 5  # accepted steps over which the decrease is measured, and compared with that of as many before
MAX_RATIO = 0.95  # largest ratio of the two that is used to extrapolate
MARGIN = 5.0  # factor by which the model's expected decrease must be below the tolerance
GAIN, MIN_GAIN = 10.0, 0.05  # see `_allowed_gap`
COMPACT_BELOW = 0.75  # share of active heads in the batch below which the others are removed


class History:
    """The last m steps of A heads that start at `start` (A, …). An unused slot holds zeros.

    S, Y, HY : (A, m, N) steps, changes of the gradient, and H0 times these.
    SY, YHY : (A, m, m) float64 products.
    """

    def __init__(self, start: Tensor, memory: int) -> None:
        A, N = start.flatten(1).shape
        self.memory = memory
        self.count = torch.zeros(A, dtype=torch.long, device=start.device)
        self.S, self.Y, self.HY = (start.new_zeros(A, memory, N) for _ in range(3))
        self.SY, self.YHY = (start.new_zeros(A, memory, memory, dtype=torch.float64) for _ in range(2))
        # Heads and y of the newest step; its products are computed together with the next direction's.
        self._pending: tuple[Tensor, Tensor] | None = None

    def push(self, s: Tensor, y: Tensor, hy: Tensor, accepted: Tensor) -> None:
        """Store the steps s, changes y and H0 y (A, N) of the heads `accepted` (A,) bool.

        A pair without positive curvature is left out; only rounding makes such a pair.
        """
        floor = 1e-10 * torch.linalg.vector_norm(s, dim=1) * torch.linalg.vector_norm(y, dim=1)
        heads = (accepted & ((s * y).sum(dim=1) > floor)).nonzero()[:, 0]
        self._pending = heads, y
        slot = self.count[heads] % self.memory
        for stored, new in ((self.S, s), (self.Y, y), (self.HY, hy)):
            stored[heads, slot] = new[heads]

    def direction(self, g: Tensor, hg: Tensor) -> Tensor:
        """Return −H g (A, N) for the gradients g (A, N) and hg = H0 g."""
        a, b = self._products(g)
        order = self._oldest_first()
        a, b = a.gather(1, order)[..., None], b.gather(1, order)[..., None]
        SY, YHY = _reordered(self.SY, order), _reordered(self.YHY, order)
        E, W = SY.diagonal(dim1=1, dim2=2), YHY.diagonal(dim1=1, dim2=2)
        newest = (self.count.clamp(max=self.memory) - 1).clamp(min=0)[:, None]
        scale = E.gather(1, newest) / W.gather(1, newest)
        gamma = torch.where(self.count[:, None] > 0, scale, 1.0)[..., None]
        R = SY.triu() + torch.diag_embed((E == 0).to(SY.dtype))  # a 1 for unused slots
        x = torch.linalg.solve_triangular(R, a, upper=True)
        right = E[..., None] * x + gamma * (YHY @ x - b)
        p = torch.linalg.solve_triangular(R.mT, right, upper=False)
        back = order.argsort(dim=1)
        p, x = (part[..., 0].gather(1, back).to(g.dtype)[:, None] for part in (p, gamma * x))
        return (gamma[:, 0].to(g.dtype) * hg + (p @ self.S)[:, 0] - (x @ self.HY)[:, 0]).neg_()

    def _products(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return S g and HY g (A, m) float64; fill in the products of the pending step."""
        if self._pending is None:
            return (self.S @ g[..., None])[..., 0].double(), (self.HY @ g[..., None])[..., 0].double()
        heads, y = self._pending
        both = torch.stack([g, y], dim=2)
        with_s, with_hy = (self.S @ both).double(), (self.HY @ both).double()
        slot = self.count[heads] % self.memory
        self.SY[heads, :, slot] = with_s[heads, :, 1]
        self.YHY[heads, :, slot] = with_hy[heads, :, 1]
        self.YHY[heads, slot, :] = with_hy[heads, :, 1]
        self.count[heads] += 1
        self._pending = None
        return with_s[..., 0], with_hy[..., 0]

    def rescale(self, change: Callable[[Tensor, Tensor], Tensor], apply: Callable[[Tensor], Tensor]) -> None:
        """Adapt the steps to another objective: y becomes change(s, y), and `apply` is the new H0."""
        for slot in range(self.memory):
            self.Y[:, slot] = change(self.S[:, slot], self.Y[:, slot])
            self.HY[:, slot] = apply(self.Y[:, slot])
        self.SY = (self.S @ self.Y.mT).double()
        self.YHY = (self.HY @ self.Y.mT).double()

    def select(self, heads: Tensor) -> History:
        """Return a copy of the history of `heads` (a,) alone."""
        part = object.__new__(History)
        part.memory, part._pending = self.memory, None
        for name in ("count", "S", "Y", "HY", "SY", "YHY"):
            setattr(part, name, getattr(self, name)[heads])
        return part

    def write_back(self, heads: Tensor, part: History) -> None:
        """Store what `select(heads)` returned. HY, SY and YHY are not: `rescale` computes them anew."""
        for name in ("count", "S", "Y"):
            getattr(self, name)[heads] = getattr(part, name)

    def _oldest_first(self) -> Tensor:
        """Return the slots (A, m) in the order in which they were filled, unused ones last."""
        start = torch.where(self.count > self.memory, self.count % self.memory, 0)
        return (start[:, None] + torch.arange(self.memory, device=start.device)) % self.memory


def _reordered(square: Tensor, order: Tensor) -> Tensor:
    """Return square[:, order][:, :, order] for each head."""
    index = order[:, :, None].expand_as(square)
    return square.gather(1, index).gather(2, index.mT)


class BatchedLBFGS:
    """Minimises the objective F of some heads of a group; `trial` and `update` alternate.

    Parameters
    ----------
    heads : (A,) numbers of the heads in their group.
    coef : (A, K, P), the start.
    null : (A,) float64, the objective with intercepts alone.
    history : steps of these heads at an earlier C, already rescaled to this one; updated in place.
    prec : H0 at this C.
    tol : relative to the objective; see "When a head has converged" on the package's page.
    passes : the largest number of updates.

    Attributes
    ----------
    coef : (A, K, P), objective : (A,) float64, converged : (A,) bool, of all heads
    """

    def __init__(
        self,
        heads: Tensor,
        coef: Tensor,
        null: Tensor,
        *,
        C: float,
        history: History,
        prec: Preconditioner,
        tol: float,
        passes: int,
    ) -> None:
        self.C, self.prec, self.tol, self.passes_left = C, prec, tol, passes
        self.coef, self.null = coef.clone(), null
        self._all_heads, self._full_history = heads, history
        self.objective = torch.full((len(heads),), torch.inf, dtype=torch.float64, device=coef.device)
        self.converged = torch.zeros(len(heads), dtype=torch.bool, device=coef.device)
        self._noise = 4 * torch.finfo(coef.dtype).eps
        # The batch: `_index` holds the positions of its heads among all; `active` is False for those that
        # have ended but have not been removed yet.
        self._index = torch.arange(len(heads), device=coef.device)
        self.active = torch.ones_like(self.converged)
        self._history = history
        self._x = coef.flatten(1)
        self._f = self.objective.clone()
        self._g, self._step = torch.zeros_like(self._x), torch.zeros_like(self._x)
        self._slope, self._length = torch.zeros_like(self._f), torch.ones_like(self._f)
        self._cuts = torch.zeros_like(self._index)
        self._recent = self._f[:, None].repeat(1, 2 * WINDOW)
        self._at_start = True

    @property
    def heads(self) -> Tensor:
        """(A,) numbers, in their group, of the heads that have not converged."""
        return self._all_heads[self._index[self.active]]

    def trial(self) -> Tensor:
        """Return the points (A, K, P) at which the active heads need their loss and gradient."""
        trial = self._x + self._length[:, None].to(self._x.dtype) * self._step
        return trial[self.active].view(-1, *self.coef.shape[1:])

    def update(self, trial: Tensor, loss: Tensor, slope: Tensor) -> None:
        """Accept or shorten the steps, given the loss (A,) and its gradient (A, K, P) at `trial`."""
        trial, objective, gradient = self._with_penalty(trial, loss, slope)
        allowed = self._f + ARMIJO * self._length * self._slope + self._noise * objective.abs()
        accepted = self.active & (objective <= allowed)
        chosen = accepted[:, None]
        if not self._at_start:
            s = torch.where(chosen, trial - self._x, 0)
            y = torch.where(chosen, gradient - self._g, 0)
            self._history.push(s, y, self._precondition(y), accepted)
        self._at_start = False
        self._shorten(self.active & ~accepted, objective)
        self._x, self._g = torch.where(chosen, trial, self._x), torch.where(chosen, gradient, self._g)
        self._f = torch.where(accepted, objective, self._f)
        self._set_directions(accepted)
        self.passes_left -= 1
        self._compact()

    def _with_penalty(self, trial: Tensor, loss: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return points, objectives and gradients of the whole batch; heads that are not active get zeros."""
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
        """Shorten the steps of `heads` to the minimum of a parabola through the known values and slope."""
        t = self._length
        parabola = -self._slope * t * t / (2 * (objective - self._f - self._slope * t))
        parabola = torch.where(parabola.isfinite(), parabola, 0.1 * t)
        self._length = torch.where(heads, parabola.clamp(min=0.1 * t, max=0.5 * t), t)
        self._cuts += heads
        self.active = self.active & (self._cuts <= MAX_CUTS)

    def _set_directions(self, accepted: Tensor) -> None:
        """Give the heads that moved their next direction, or mark them as converged."""
        step = self._history.direction(self._g, self._precondition(self._g))
        self._step = torch.where(accepted[:, None], step, self._step)
        slope = (self._g * self._step).sum(dim=1, dtype=torch.float64)
        remaining = self._extrapolated_decrease()
        self._recent = torch.where(
            accepted[:, None], torch.cat([self._recent[:, 1:], self._f[:, None]], dim=1), self._recent
        )
        self._slope = torch.where(accepted, slope, self._slope)
        self._length = torch.where(accepted, 1.0, self._length)
        self._cuts *= ~accepted
        allowed = self._allowed_gap()
        likely = (-0.5 * MARGIN * slope <= allowed) & (remaining <= allowed)
        done = accepted & ((self._proven_gap() <= allowed) | likely)
        self.converged[self._index[done]] = True
        self.active = self.active & ~done

    def _extrapolated_decrease(self) -> Tensor:
        """Return (A,) the decrease d of the last WINDOW steps, or the sum ρ d + ρ² d + … where it is larger.

        ρ is the ratio of d to the decrease of as many steps before. The sum, ρ / (1 − ρ) · d, is several
        times d where convergence is slow.
        """
        before, since = self._recent[:, 0] - self._recent[:, WINDOW], self._recent[:, WINDOW] - self._f
        ratio = (since / before).nan_to_num(0.0).clamp(0.0, MAX_RATIO)
        return since * (ratio / (1 - ratio)).clamp(min=1.0)

    def _allowed_gap(self) -> Tensor:
        """Return (A,) how far an objective may be above its optimum.

        At small C nearly all of the objective is what intercepts alone leave. The tolerance is then relative
        to what the weights gained, or heads would stop before they have learned anything.
        """
        gain = GAIN * (self.null[self._index] - self._f)
        return self.tol * self._f.abs().minimum(gain.clamp(min=MIN_GAIN * self._f.abs()))

    def _proven_gap(self) -> Tensor:
        """Return (A,) an upper bound of the objective above its optimum: F is 1-strongly convex in w."""
        square = self._g.double().square().view(len(self._g), *self.coef.shape[1:])
        offsets = square[..., -1] * self.prec.intercept_inverse(self._all_heads[self._index])
        return 0.5 * (square[..., :-1].sum(dim=(1, 2)) + offsets.sum(dim=1))

    def _compact(self) -> None:
        """Store the results, and remove ended heads from the batch, once many of its heads have ended."""
        if self.passes_left <= 0:
            self.active = torch.zeros_like(self.active)
        count = int(self.active.sum())
        if count and count > COMPACT_BELOW * len(self.active):
            return
        self.coef[self._index] = self._x.view(-1, *self.coef.shape[1:])
        self.objective[self._index] = self._f
        remaining = self.active.nonzero()[:, 0]
        if self._history is self._full_history:
            self._history = self._full_history.select(self._index[remaining])
        else:
            self._full_history.write_back(self._index, self._history)
            self._history = self._history.select(remaining)
        self._index = self._index[remaining]
        for name in ("_x", "_f", "_g", "_step", "_slope", "_length", "_cuts", "_recent", "active"):
            setattr(self, name, getattr(self, name)[remaining])

    def _precondition(self, g: Tensor) -> Tensor:
        return self.prec.apply(self._all_heads[self._index], g)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Return (A, …) with `values` (a, …) where `mask` (A,) is True, zeros elsewhere."""
    if len(values) == len(mask):
        return values
    out = values.new_zeros(len(mask), *values.shape[1:])
    out[mask] = values
    return out
