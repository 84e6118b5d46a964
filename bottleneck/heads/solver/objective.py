"""Losses, gradients, curvatures and held-out logits of many heads, each in one pass over the rows.

A pass stacks the columns of all heads into one matrix: one product gives their logits, one their gradients.
Logits are held with the rows last, so that every operation runs along memory.

Shapes: A heads of a group, K columns of a head, P coefficients of a column (intercept last), J columns that
are multiplied, c columns of all heads in one product, B rows of a block, r leading coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from bottleneck.heads.solver.arrays import (
    Array,
    cast,
    dtype_of,
    library,
    put_along,
    quiet,
    sigmoid,
    softmax,
    take_along,
    to_numpy,
    zeros_like,
)
from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.problem import NO_FOLD, TaskGroup
from bottleneck.heads.solver.products import times_transposed
from bottleneck.threads import WorkerPool

MIN_SHARED = 100_000_000  # products of two numbers in a pass; with fewer, two threads are no faster than one


@quiet
def loss_and_residual(logits: Array, codes: Array, weights: Array) -> Array:
    """Return each head's weighted loss on a block; the logits are overwritten by the loss's derivatives.

    Parameters
    ----------
    logits : (A, K, B); becomes the residual, w (p − 1[true]).
    codes : (A, B) int, the true class; 0 or 1 where K is 1.
    weights : (A, B), 0 where a head does not use a row.

    Returns
    -------
    (A,) float64, Σ −w log p(true).
    """
    loss = (
        _sigmoid(logits[:, 0], codes, weights) if logits.shape[1] == 1 else _softmax(logits, codes, weights)
    )
    return (loss * weights).sum(axis=1, dtype=library(logits).float64)


def _softmax(logits: Array, codes: Array, weights: Array) -> Array:
    """1 − p(true) is the sum over the other classes: as a difference it would be rounded off near p = 1."""
    xp, true = library(logits), cast(codes, np.int64)[:, None]
    logits -= xp.amax(logits, axis=1, keepdims=True)
    z = take_along(logits, true)[:, 0]
    e = xp.exp(z)
    xp.exp(logits, out=logits)
    put_along(logits, true, 0.0)
    others = logits.sum(axis=1)
    scale = weights / (others + e)
    logits *= scale[:, None]
    put_along(logits, true, -(others * scale)[:, None])
    return xp.log1p(others + (e - 1)) - z


def _sigmoid(logits: Array, codes: Array, weights: Array) -> Array:
    """The logit of the wrong class is used: its loss and residual keep their digits near 0.

    The loss log(1 + exp z) is max(z, 0) + log(1 + e), e = exp −|z|. With u = 1 + e as rounded, log(1 + e) is
    log u + (e − (u − 1)) / u: log1p and artanh take several times as long as log on a CPU. The sigmoid is
    1 / u, or e / u where z < 0.
    """
    xp = library(logits)
    sign = 1 - 2 * cast(codes, dtype_of(logits))
    logits *= sign
    e = xp.exp(-abs(logits))
    u = 1 + e
    loss = xp.log(u) + (e - (u - 1)) / u + xp.clip(logits, 0, None)
    xp.divide(xp.maximum(e, cast(logits >= 0, dtype_of(logits))), u, out=logits)
    logits *= sign
    logits *= weights
    return loss


def curvature(logits: Array, weights: Array) -> Array:
    """Return the second derivative of the weighted loss by each logit, w p (1 − p), shape (A, K, B)."""
    p = sigmoid(logits) if logits.shape[1] == 1 else softmax(logits)
    return p * (1 - p) * weights[:, None]


def coupled_curvature(p: Array, weights: Array, k: int) -> Array:
    """Return the second derivatives by a softmax's logit k and logits 0 … k, w (p_k [k = l] − p_k p_l).

    p : (K, B) probabilities, weights : (B,). The result is (k + 1, B).
    """
    scaled = weights * p[k]
    rows = -scaled * p[: k + 1]
    # p (1 − p) is summed from the other classes: equal logits then have no curvature, whatever the rounding.
    rows[k] = scaled * (p[:k].sum(axis=0) + p[k + 1 :].sum(axis=0))
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Heads (A,) of a group at coefficients (A, K, P), which sum to zero over the columns of a softmax."""

    group: TaskGroup
    heads: Array
    coef: Array


class Passes:
    """Passes over the rows of a design by a pool of threads."""

    def __init__(self, design: Design, pool: WorkerPool) -> None:
        self.design, self.pool = design, pool

    def over(self, groups: Sequence[TaskGroup]) -> Passes:
        """Return passes for the heads of `groups`: small ones are made by the calling thread alone.

        To give a block to another thread, and to wait for it, costs up to a millisecond of processor time.
        """
        columns = sum(group.n_heads * max(1, group.columns - 1) for group in groups)
        if self.design.n * self.design.width * columns >= MIN_SHARED:
            return self
        return Passes(self.design, WorkerPool(self.pool.device, size=1))

    def gradients(self, evaluations: Sequence[Evaluation]) -> list[tuple[Array, Array]]:
        """Return the loss (A,) and gradient (A, K, P), float64, of each evaluation."""
        columns = _Columns(self.design, evaluations)
        zeros = self.design.place.zeros
        slope, offset = zeros(*columns.coef.shape), zeros(len(columns.coef))
        losses = [zeros(len(evaluation.heads)) for evaluation in evaluations]
        for which, part, offset_part, block_losses in self.design.each_block(self.pool, columns.gradients):
            if which is None:
                slope += part
                offset += offset_part
            else:
                slope[which] += part  # no column twice
                offset[which] += offset_part
            for total, loss in zip(losses, block_losses, strict=True):
                total += loss
        slope = self.design.place.xp.concatenate([self.design.to_eigenbasis(slope), offset[:, None]], axis=1)
        return list(zip(losses, columns.by_evaluation(slope), strict=True))

    def curvatures(self, evaluation: Evaluation, r: int, coupled: bool) -> Array:
        """Return Σ_i S_i ⊗ x_i x_iᵀ of (2), over r leading coordinates and a constant 1.

        coupled : one block for all K columns of a head together, else one for each column.
        Returns float64 (A, 1, K · (r + 1), K · (r + 1)) or (A, K, r + 1, r + 1).
        """
        columns, xp = _Columns(self.design, [evaluation]), self.design.place.xp

        def block(x: Array, start: int, stop: int) -> Array:
            _, w = evaluation.group.codes_and_weights(evaluation.heads, start, stop)
            (logits,) = columns.by_evaluation(columns.logits(x))
            lead = zeros_like(x, r + 1, len(x))
            lead[:r], lead[r] = self.design.leading(x, r).T, 1
            if coupled:
                pairs = zip(softmax(logits), w, strict=True)
                return xp.stack([_coupled_block(p, weights, lead)[None] for p, weights in pairs])
            out = zeros_like(lead, *logits.shape[:2], r + 1, r + 1)
            for into, S in zip(out, curvature(logits, w), strict=True):
                for k, s in enumerate(S):
                    xp.matmul(s * lead, lead.T, out=into[k])
            return out

        heads, size = len(evaluation.heads), evaluation.group.columns * (r + 1)
        shape = (1, size, size) if coupled else (evaluation.group.columns, r + 1, r + 1)
        total = self.design.place.zeros(heads, *shape)
        for part in self.design.each_block(self.pool, block):
            total += part
        return total

    def held_out(self, fits: Sequence[tuple[TaskGroup, Array]]) -> Iterator[tuple[int, int, list[Array]]]:
        """Yield, block by block, the logits of every task on each row by the head that leaves the row out.

        fits : groups with the coefficients (H, K, P) of all their heads.
        Yields (start, stop, for each group (T, K, B)). With folds, a row that no fold holds out gets zeros.
        """
        columns = [
            _Columns(self.design, [Evaluation(group, np.arange(group.n_heads), coef)]) for group, coef in fits
        ]

        def block(x: Array, start: int, stop: int) -> tuple[int, int, list[Array]]:
            return start, stop, [part.held_out(x, start, stop) for part in columns]

        yield from self.design.each_block(self.pool, block)


class _Columns:
    """The coefficients of several evaluations as the rows of one matrix.

    coef : (c, D) as they multiply blocks; offset : (c, 1) intercepts; multiplied : J of each evaluation;
    sizes : A · J of each.
    """

    def __init__(self, design: Design, evaluations: Sequence[Evaluation]) -> None:
        self.evaluations = evaluations
        self.multiplied = [max(1, evaluation.group.columns - 1) for evaluation in evaluations]
        parts = [_flat(evaluation.coef[:, :J]) for evaluation, J in self._each()]
        self.sizes = [len(part) for part in parts]
        flat = design.place.xp.concatenate(parts)
        self.coef, self.offset = design.to_row_basis(flat[:, :-1]), flat[:, -1:]

    def logits(self, x: Array, which: Array | None = None) -> Array:
        """Return the logits (c, B) of a block (B, D), or those of the columns `which`."""
        if which is None:
            logits = times_transposed(self.coef, x)
            logits += self.offset
        else:
            logits = times_transposed(self.coef[which], x)
            logits += self.offset[which]
        return logits

    def by_evaluation(self, values: Array) -> list[Array]:
        """Split values (c, …) into (A, K, …) of each evaluation; a softmax gets its last column."""
        parts, bounds = [], pairwise([0, *accumulate(self.sizes)])
        for (start, stop), (evaluation, J) in zip(bounds, self._each(), strict=True):
            part = values[start:stop].reshape(-1, J, *values.shape[1:])
            parts.append(_with_last(part, evaluation.group))
        return parts

    def gradients(self, x: Array, start: int, stop: int) -> tuple[Array | None, Array, Array, list[Array]]:
        """Return a block's part of the gradients.

        Returns the columns of heads that are fitted on a row of the block (None: all), their gradients by
        coefficients (c, D) and by intercepts (c,), and the losses of all heads.
        """
        pairs = [e.group.codes_and_weights(e.heads, start, stop) for e in self.evaluations]
        xp = library(x)
        fitted = [w.any(axis=1) for _, w in pairs]
        which = None
        if not all(bool(heads.all()) for heads in fitted):
            marks = [
                xp.broadcast_to(heads[:, None], (len(heads), J)).reshape(-1)
                for heads, J in zip(fitted, self.multiplied, strict=True)
            ]
            (which,) = xp.where(xp.concatenate(marks))
        logits = self.logits(x, which)
        losses, residuals, first = [], [], 0
        for (evaluation, J), (codes, w), heads in zip(self._each(), pairs, fitted, strict=True):
            if which is not None:
                codes, w = codes[heads], w[heads]
            multiplied = logits[first : first + len(w) * J].reshape(len(w), J, len(x))
            part = _with_last(multiplied, evaluation.group)
            loss = zeros_like(w, len(heads), dtype=np.float64)
            loss[heads] = loss_and_residual(part, codes, w)
            losses.append(loss)
            residuals.append(_flat(part[:, :J]))
            first += len(w) * J
        residual = xp.concatenate(residuals)
        return which, times_transposed(residual, x.T), residual.sum(axis=1, dtype=xp.float64), losses

    def held_out(self, x: Array, start: int, stop: int) -> Array:
        """Return logits (T, K, B) of a block, by the heads of each row's fold or by the tasks' only heads.

        For the single evaluation of all heads of a group.
        """
        group = self.evaluations[0].group
        if not group.folds:
            return self.by_evaluation(self.logits(x))[0]
        fold = group.fold[:, start:stop]
        T, (J,) = group.n_tasks, self.multiplied
        index = np.arange(T * group.folds * J).reshape(T, group.folds, J)
        out = zeros_like(x, T, J, len(x))
        for number in set(np.unique(to_numpy(fold)).tolist()) - {NO_FOLD}:
            logits = self.logits(x, index[:, number].reshape(-1)).reshape(T, J, len(x))
            out = library(x).where((fold == number)[:, None], logits, out)
        return _with_last(out, group)

    def _each(self) -> Iterator[tuple[Evaluation, int]]:
        return zip(self.evaluations, self.multiplied, strict=True)


def _with_last(columns: Array, group: TaskGroup) -> Array:
    """Return (A, K, …) for the multiplied columns (A, J, …): all columns of a softmax sum to zero."""
    if group.columns == 1:
        return columns
    return library(columns).concatenate([columns, -columns.sum(axis=1, keepdims=True)], axis=1)


def _flat(columns: Array) -> Array:
    """Return (A · J, …) for (A, J, …)."""
    return columns.reshape(-1, *columns.shape[2:])


def _coupled_block(p: Array, weights: Array, lead: Array) -> Array:
    """Return Σ_i S_i ⊗ x_i x_iᵀ (K · q, K · q) for probabilities (K, B), weights (B,) and coordinates (q, B).

    The coordinates lie along memory: with rows there, scaling them takes longer than the product.
    """
    K, q = len(p), len(lead)
    out = zeros_like(lead, K, q, K, q)
    for k in range(K):  # the rest is symmetric
        rows = coupled_curvature(p, weights, k)[:, None]
        part = (_flat(rows * lead) @ lead.T).reshape(k + 1, q, q)
        out[k, :, : k + 1] = library(part).swapaxes(part, 0, 1)
        out[: k + 1, :, k] = part
    return out.reshape(K * q, K * q)
