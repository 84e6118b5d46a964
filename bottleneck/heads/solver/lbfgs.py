"""Batched L-BFGS with a line search for several heads at one C. See (3) of the package's page.

Shapes: A heads, K columns, P coefficients of a column (intercept last), N = K · P, m steps remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bottleneck.heads.solver.arrays import (
    Array,
    cast,
    dtype_of,
    library,
    place_of,
    quiet,
    solve_triangular,
    take_along,
    transposed,
    zeros_like,
)
from bottleneck.heads.solver.preconditioner import Preconditioner
from bottleneck.heads.solver.products import with_rows

ARMIJO = 1e-4  # share of the expected decrease that a step must reach
MAX_CUTS = 15  # of one step; after that, rounding decides and not the function
WINDOW = 5  # accepted steps over which the decrease is measured, and compared with that of as many before
MAX_RATIO = 0.95  # largest ratio of the two that is used to extrapolate
MARGIN = 5.0  # factor by which the model's expected decrease must be below the tolerance
GAIN, MIN_GAIN = 10.0, 0.05  # see `_allowed_gap`
COMPACT_BELOW = 0.75  # share of active heads in the batch below which the others are removed


class History:
    """The last m steps of A heads that start at `start` (A, …). An unused slot holds zeros.

    S, Y, HY : (A, m, N) steps, changes of the gradient, and H0 times these. S and HY are one array, S_HY
    (A, 2m, N), since both are multiplied by the same vectors.
    SY, YHY : (A, m, m) float64 products.
    """

    def __init__(self, start: Array, memory: int) -> None:
        A, N = start.reshape(len(start), -1).shape
        self.memory = memory
        self.count = zeros_like(start, A, dtype=np.int64)
        self.S_HY, self.Y = zeros_like(start, A, 2 * memory, N), zeros_like(start, A, memory, N)
        self.SY, self.YHY = (zeros_like(start, A, memory, memory, dtype=np.float64) for _ in range(2))
        # Heads and y of the newest step; its products are computed together with the next direction's.
        self._pending: tuple[Array, Array] | None = None

    @property
    def S(self) -> Array:
        return self.S_HY[:, : self.memory]

    @property
    def HY(self) -> Array:
        return self.S_HY[:, self.memory :]

    def push(self, heads: Array, s: Array, y: Array, hy: Array) -> None:
        """Store the steps s, changes y and H0 y (a, N) of `heads` (a,).

        A pair without positive curvature is left out; only rounding makes such a pair.
        """
        xp = library(s)
        floor = 1e-10 * xp.linalg.norm(s, axis=1) * xp.linalg.norm(y, axis=1)
        (curved,) = xp.where((s * y).sum(axis=1) > floor)
        heads, y = heads[curved], y[curved]
        self._pending = heads, y
        slot = self.count[heads] % self.memory
        for stored, new in ((self.S, s[curved]), (self.Y, y), (self.HY, hy[curved])):
            stored[heads, slot] = new

    @quiet
    def direction(self, g: Array, hg: Array) -> Array:
        """Return −H g (A, N) for the gradients g (A, N) and hg = H0 g."""
        xp, slots = library(g), np.arange(self.memory)
        a, b = self._products(g)
        order = self._oldest_first()
        back = xp.argsort(order, axis=1)
        R = xp.triu(_reordered(self.SY, order))
        E = R[:, slots, slots]
        R[:, slots, slots] = xp.where(E == 0, 1.0, E)  # a 1 for unused slots
        last = xp.clip(xp.clip(self.count, None, self.memory) - 1, 0, None)[:, None]
        newest = take_along(order, last)
        scale = take_along(E, last) / take_along(self.YHY[:, slots, slots], newest)
        gamma = xp.where(self.count[:, None] > 0, scale, 1.0)
        x = solve_triangular(R, take_along(a, order)[..., None], upper=True)
        by_slot = take_along(x[..., 0], back)[..., None]
        right = gamma * ((self.YHY @ by_slot)[..., 0] - b)
        right = E[..., None] * x + take_along(right, order)[..., None]
        p = take_along(solve_triangular(transposed(R), right, upper=False)[..., 0], back)
        factors = cast(xp.concatenate([p, -gamma * by_slot[..., 0]], axis=1), dtype_of(g))
        direction = cast(gamma, dtype_of(g)) * hg + (factors[:, None] @ self.S_HY)[:, 0]
        return xp.negative(direction, out=direction)

    def _products(self, g: Array) -> tuple[Array, Array]:
        """Return S g and HY g (A, m) float64; fill in the products of the pending step."""
        m = self.memory
        if self._pending is None:
            products = cast(with_rows(g[:, None], self.S_HY)[:, 0], np.float64)
            return products[:, :m], products[:, m:]
        heads, y = self._pending
        vectors = zeros_like(g, len(g), 2, g.shape[1])
        vectors[:, 0], vectors[heads, 1] = g, y
        products = cast(with_rows(vectors, self.S_HY), np.float64)
        slot = self.count[heads] % m
        self.SY[heads, :, slot] = products[heads, 1, :m]
        self.YHY[heads, :, slot] = products[heads, 1, m:]
        self.YHY[heads, slot, :] = products[heads, 1, m:]
        self.count[heads] += 1
        self._pending = None
        return products[:, 0, :m], products[:, 0, m:]

    @quiet
    def rescale(self, change: Callable[[Array, Array], Array], apply: Callable[[Array], Array]) -> None:
        """Adapt the steps to another objective: y becomes change(s, y), and `apply` is the new H0."""
        for slot in range(self.memory):
            self.Y[:, slot] = change(self.S[:, slot], self.Y[:, slot])
            self.HY[:, slot] = apply(self.Y[:, slot])
        products = cast(self.S_HY @ transposed(self.Y), np.float64)
        self.SY, self.YHY = products[:, : self.memory], products[:, self.memory :]

    def select(self, heads: Array) -> History:
        """Return a copy of the history of `heads` (a,) alone."""
        part = object.__new__(History)
        part.memory, part._pending = self.memory, None
        for name in ("count", "S_HY", "Y", "SY", "YHY"):
            setattr(part, name, getattr(self, name)[heads])
        return part

    def write_back(self, heads: Array, part: History) -> None:
        """Store what `select(heads)` returned. HY, SY and YHY are not: `rescale` computes them anew."""
        for name in ("count", "S", "Y"):
            getattr(self, name)[heads] = getattr(part, name)

    def _oldest_first(self) -> Array:
        """Return the slots (A, m) in the order in which they were filled, unused ones last."""
        start = library(self.count).where(self.count > self.memory, self.count % self.memory, 0)
        return (start[:, None] + place_of(start).array(np.arange(self.memory))) % self.memory


def _reordered(square: Array, order: Array) -> Array:
    """Return square[:, order][:, :, order] for each head."""
    heads = np.arange(len(square))[:, None, None]
    return square[heads, order[:, :, None], order[:, None, :]]


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
        heads: Array,
        coef: Array,
        null: Array,
        *,
        C: float,
        history: History,
        prec: Preconditioner,
        tol: float,
        passes: int,
    ) -> None:
        self.C, self.prec, self.tol, self.passes_left = C, prec, tol, passes
        self.coef, self.null = coef * 1, null
        place, count = place_of(coef), len(heads)
        self._all_heads, self._full_history = heads, history
        self.objective = place.array(np.full(count, np.inf))
        self.converged = place.zeros(count, dtype=np.bool_)
        self._noise = 4 * float(np.finfo(dtype_of(coef)).eps)
        # The batch: `_index` holds the positions of its heads among all; `active` is False for those that
        # have ended but have not been removed yet.
        self._index = place.array(np.arange(count))
        self.active = ~self.converged
        self._history = history
        self._x = coef.reshape(count, -1) * 1
        self._f = self.objective * 1
        # The gradient g, H0 g, and the step that is tried next.
        self._g, self._hg, self._step = 0 * self._x, 0 * self._x, 0 * self._x
        self._slope, self._length = place.zeros(count), 1 + place.zeros(count)
        self._cuts = 0 * self._index
        self._recent = place.array(np.full((count, 2 * WINDOW), np.inf))
        self._at_start = True

    @property
    def heads(self) -> Array:
        """(A,) numbers, in their group, of the heads that have not converged."""
        return self._all_heads[self._index[self.active]]

    def trial(self) -> Array:
        """Return the points (A, K, P) at which the active heads need their loss and gradient."""
        trial = self._x + cast(self._length[:, None], dtype_of(self._x)) * self._step
        return trial[self.active].reshape(-1, *self.coef.shape[1:])

    @quiet
    def update(self, trial: Array, loss: Array, slope: Array) -> None:
        """Accept or shorten the steps, given the loss (A,) and its gradient (A, K, P) at `trial`."""
        xp = library(trial)
        trial, objective, gradient = self._with_penalty(trial, loss, slope)
        allowed = self._f + ARMIJO * self._length * self._slope + self._noise * abs(objective)
        accepted = self.active & (objective <= allowed)
        (moved,) = xp.where(accepted)
        hg = self.prec.apply(self._all_heads[self._index], gradient)
        points = ((self._x, trial), (self._g, gradient), (self._hg, hg))
        if not self._at_start:
            self._history.push(moved, *(new[moved] - old[moved] for old, new in points))
        self._at_start = False
        self._shorten(self.active & ~accepted, objective)
        for old, new in points:
            old[moved] = new[moved]
        self._f = xp.where(accepted, objective, self._f)
        self._set_directions(accepted, moved)
        self.passes_left -= 1
        self._compact()

    def _with_penalty(self, trial: Array, loss: Array, slope: Array) -> tuple[Array, Array, Array]:
        """Return points, objectives and gradients of the whole batch; heads that are not active get zeros."""
        count = len(trial)
        weights = trial * 1
        weights[..., -1] = 0
        square = (weights * weights).reshape(count, -1).sum(axis=1, dtype=library(trial).float64)
        objective = self.C * loss + 0.5 * square
        gradient = cast(self.C * slope + weights, dtype_of(trial))
        return (
            _spread(trial.reshape(count, -1), self.active),
            _spread(objective, self.active),
            _spread(gradient.reshape(count, -1), self.active),
        )

    def _shorten(self, heads: Array, objective: Array) -> None:
        """Shorten the steps of `heads` to the minimum of a parabola through the known values and slope."""
        t, xp = self._length, library(objective)
        parabola = -self._slope * t * t / (2 * (objective - self._f - self._slope * t))
        parabola = xp.where(xp.isfinite(parabola), parabola, 0.1 * t)
        self._length = xp.where(heads, xp.clip(parabola, 0.1 * t, 0.5 * t), t)
        self._cuts += heads
        self.active = self.active & (self._cuts <= MAX_CUTS)

    def _set_directions(self, accepted: Array, moved: Array) -> None:
        """Give the heads that moved their next direction, or mark them as converged.

        accepted : (A,) bool, which they are; moved : their positions.
        """
        xp = library(accepted)
        step = self._history.direction(self._g, self._hg)
        self._step[moved] = step[moved]
        slope = (self._g * self._step).sum(axis=1, dtype=xp.float64)
        remaining = self._extrapolated_decrease()
        moved = xp.concatenate([self._recent[:, 1:], self._f[:, None]], axis=1)
        self._recent = xp.where(accepted[:, None], moved, self._recent)
        self._slope = xp.where(accepted, slope, self._slope)
        self._length = xp.where(accepted, 1.0, self._length)
        self._cuts *= ~accepted
        allowed = self._allowed_gap()
        likely = (-0.5 * MARGIN * slope <= allowed) & (remaining <= allowed)
        done = accepted & ((self._proven_gap() <= allowed) | likely)
        self.converged[self._index[done]] = True
        self.active = self.active & ~done

    def _extrapolated_decrease(self) -> Array:
        """Return (A,) the decrease d of the last WINDOW steps, or the sum ρ d + ρ² d + … where it is larger.

        ρ is the ratio of d to the decrease of as many steps before. The sum, ρ / (1 − ρ) · d, is several
        times d where convergence is slow.
        """
        before, since = self._recent[:, 0] - self._recent[:, WINDOW], self._recent[:, WINDOW] - self._f
        xp = library(since)
        ratio = xp.clip(xp.nan_to_num(since / before, nan=0.0), 0.0, MAX_RATIO)
        return since * xp.clip(ratio / (1 - ratio), 1.0, None)

    def _allowed_gap(self) -> Array:
        """Return (A,) how far an objective may be above its optimum.

        At small C nearly all of the objective is what intercepts alone leave. The tolerance is then relative
        to what the weights gained, or heads would stop before they have learned anything.
        """
        xp, size = library(self._f), abs(self._f)
        gain = GAIN * (self.null[self._index] - self._f)
        return self.tol * xp.minimum(size, xp.maximum(gain, MIN_GAIN * size))

    def _proven_gap(self) -> Array:
        """Return (A,) an upper bound of the objective above its optimum: F is 1-strongly convex in w."""
        square = (cast(self._g, np.float64) ** 2).reshape(len(self._g), *self.coef.shape[1:])
        offsets = square[..., -1] * self.prec.intercept_inverse(self._all_heads[self._index])
        return 0.5 * (square[..., :-1].sum(axis=(1, 2)) + offsets.sum(axis=1))

    def _compact(self) -> None:
        """Store the results, and remove ended heads from the batch, once many of its heads have ended."""
        if self.passes_left <= 0:
            self.active = self.active & False
        count = int(self.active.sum())
        if count and count > COMPACT_BELOW * len(self.active):
            return
        self.coef[self._index] = self._x.reshape(-1, *self.coef.shape[1:])
        self.objective[self._index] = self._f
        (remaining,) = library(self.active).where(self.active)
        if self._history is self._full_history:
            self._history = self._full_history.select(self._index[remaining])
        else:
            self._full_history.write_back(self._index, self._history)
            self._history = self._history.select(remaining)
        self._index = self._index[remaining]
        for name in ("_x", "_f", "_g", "_hg", "_step", "_slope", "_length", "_cuts", "_recent", "active"):
            setattr(self, name, getattr(self, name)[remaining])


def _spread(values: Array, mask: Array) -> Array:
    """Return (A, …) with `values` (a, …) where `mask` (A,) is True, zeros elsewhere."""
    if len(values) == len(mask):
        return values
    out = zeros_like(values, len(mask), *values.shape[1:])
    out[mask] = values
    return out
