"""Losses, gradients, curvatures and held-out logits of many heads, each in one pass over the rows.

A pass stacks the columns of all heads into one matrix: one product gives their logits, one their gradients.
Logits are held with the rows last, so that every operation runs along memory.

Shapes: A heads of a group, K columns of a head, P coefficients of a column (intercept last), J columns that
are multiplied, c columns of all heads in one product, B rows of a block, r leading coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.problem import NO_FOLD, TaskGroup
from bottleneck.heads.solver.products import times_transposed
from bottleneck.threads import WorkerPool


def loss_and_residual(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Return each head's weighted loss on a block; the logits are overwritten by the loss's derivatives.

    Parameters
    ----------
    logits : (A, K, B); becomes the residual, w (p − 1[true]).
    codes : (A, B) int64, the true class; 0 or 1 where K is 1.
    weights : (A, B), 0 where a head does not use a row.

    Returns
    -------
    (A,) float64, Σ −w log p(true).
    """
    loss = (
        _sigmoid(logits[:, 0], codes, weights) if logits.shape[1] == 1 else _softmax(logits, codes, weights)
    )
    return (loss * weights).sum(dim=1, dtype=torch.float64)


def _softmax(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """1 − p(true) is the sum over the other classes: as a difference it would be rounded off near p = 1."""
    true = codes[:, None]
    logits -= logits.amax(dim=1, keepdim=True)
    z = logits.gather(1, true)[:, 0]
    e = z.exp()
    others = logits.exp_().scatter_(1, true, 0.0).sum(dim=1)
    scale = weights / (others + e)
    logits *= scale[:, None]
    logits.scatter_(1, true, -(others * scale)[:, None])
    return torch.log1p(others + (e - 1)) - z


def _sigmoid(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """The logit of the wrong class is used: its loss and residual keep their digits near 0.

    The loss log(1 + exp z) is max(z, 0) + log(1 + e), e = exp −|z|, and log(1 + e) = 2 artanh(e / (2 + e)),
    because torch's log1p is slow on a CPU.
    """
    sign = 1 - 2 * codes.to(logits.dtype)
    logits *= sign
    e = logits.abs().neg_().exp_()
    loss = torch.atanh(e / (2 + e)).mul_(2).add_(logits.clamp(min=0))
    logits.sigmoid_().mul_(sign).mul_(weights)
    return loss


def curvature(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the second derivative of the weighted loss by each logit, w p (1 − p), shape (A, K, B)."""
    p = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
    return p * (1 - p) * weights[:, None]


def coupled_curvature(p: Tensor, weights: Tensor, k: int) -> Tensor:
    """Return the second derivatives by a softmax's logit k and logits 0 … k, w (p_k [k = l] − p_k p_l).

    p : (K, B) probabilities, weights : (B,). The result is (k + 1, B).
    """
    scaled = weights * p[k]
    rows = -scaled * p[: k + 1]
    # p (1 − p) is summed from the other classes: equal logits then have no curvature, whatever the rounding.
    rows[k] = scaled * (p[:k].sum(dim=0) + p[k + 1 :].sum(dim=0))
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Heads (A,) of a group at coefficients (A, K, P), which sum to zero over the columns of a softmax."""

    group: TaskGroup
    heads: Tensor
    coef: Tensor


class Passes:
    """Passes over the rows of a design by a pool of threads."""

    def __init__(self, design: Design, pool: WorkerPool) -> None:
        self.design, self.pool = design, pool

    def gradients(self, evaluations: Sequence[Evaluation]) -> list[tuple[Tensor, Tensor]]:
        """Return the loss (A,) and gradient (A, K, P), float64, of each evaluation."""
        columns = _Columns(self.design, evaluations)
        slope = torch.zeros(columns.coef.shape, dtype=torch.float64, device=self.design.device)
        offset = slope.new_zeros(len(slope))
        losses = [offset.new_zeros(len(evaluation.heads)) for evaluation in evaluations]
        for which, part, offset_part, block_losses in self.design.each_block(self.pool, columns.gradients):
            if which is None:
                slope += part
                offset += offset_part
            else:
                slope.index_add_(0, which, part.double())
                offset.index_add_(0, which, offset_part)
            for total, loss in zip(losses, block_losses, strict=True):
                total += loss
        slope = torch.cat([self.design.to_eigenbasis(slope), offset[:, None]], dim=1)
        return list(zip(losses, columns.by_evaluation(slope), strict=True))

    def curvatures(self, evaluation: Evaluation, r: int, coupled: bool) -> Tensor:
        """Return Σ_i S_i ⊗ x_i x_iᵀ of (2), over r leading coordinates and a constant 1.

        coupled : one block for all K columns of a head together, else one for each column.
        Returns float64 (A, 1, K · (r + 1), K · (r + 1)) or (A, K, r + 1, r + 1).
        """
        columns = _Columns(self.design, [evaluation])

        def block(x: Tensor, start: int, stop: int) -> Tensor:
            _, w = evaluation.group.codes_and_weights(evaluation.heads, start, stop)
            (logits,) = columns.by_evaluation(columns.logits(x))
            lead = torch.cat([self.design.leading(x, r), x.new_ones(len(x), 1)], dim=1).T.contiguous()
            if coupled:
                pairs = zip(torch.softmax(logits, dim=1), w, strict=True)
                return torch.stack([_coupled_block(p, weights, lead)[None] for p, weights in pairs])
            out = lead.new_empty(*logits.shape[:2], r + 1, r + 1)
            for into, S in zip(out, curvature(logits, w), strict=True):
                for k, s in enumerate(S):
                    torch.mm(s * lead, lead.T, out=into[k])
            return out

        heads, size = len(evaluation.heads), evaluation.group.columns * (r + 1)
        shape = (1, size, size) if coupled else (evaluation.group.columns, r + 1, r + 1)
        total = torch.zeros(heads, *shape, dtype=torch.float64, device=self.design.device)
        for part in self.design.each_block(self.pool, block):
            total += part
        return total

    def held_out(self, fits: Sequence[tuple[TaskGroup, Tensor]]) -> Iterator[tuple[int, int, list[Tensor]]]:
        """Yield, block by block, the logits of every task on each row by the head that leaves the row out.

        fits : groups with the coefficients (H, K, P) of all their heads.
        Yields (start, stop, for each group (T, K, B)). With folds, a row that no fold holds out gets zeros.
        """
        columns = [
            _Columns(self.design, [Evaluation(group, torch.arange(group.n_heads), coef)])
            for group, coef in fits
        ]

        def block(x: Tensor, start: int, stop: int) -> tuple[int, int, list[Tensor]]:
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
        parts = [evaluation.coef[:, :J].flatten(0, 1) for evaluation, J in self._each()]
        self.sizes = [len(part) for part in parts]
        flat = torch.cat(parts)
        self.coef, self.offset = design.to_row_basis(flat[:, :-1]), flat[:, -1:]

    def logits(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        """Return the logits (c, B) of a block (B, D), or those of the columns `which`."""
        if which is None:
            return times_transposed(self.coef, x).add_(self.offset)
        return times_transposed(self.coef[which], x).add_(self.offset[which])

    def by_evaluation(self, values: Tensor) -> list[Tensor]:
        """Split values (c, …) into (A, K, …) of each evaluation; a softmax gets its last column."""
        parts = zip(values.split(self.sizes), self._each(), strict=True)
        return [_with_last(part.unflatten(0, (-1, J)), evaluation.group) for part, (evaluation, J) in parts]

    def gradients(
        self, x: Tensor, start: int, stop: int
    ) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor]]:
        """Return a block's part of the gradients.

        Returns the columns of heads that are fitted on a row of the block (None: all), their gradients by
        coefficients (c, D) and by intercepts (c,), and the losses of all heads.
        """
        pairs = [e.group.codes_and_weights(e.heads, start, stop) for e in self.evaluations]
        fitted = [w.any(dim=1) for _, w in pairs]
        which = None
        if not all(bool(heads.all()) for heads in fitted):
            marks = (heads.repeat_interleave(J) for heads, J in zip(fitted, self.multiplied, strict=True))
            which = torch.cat(list(marks)).nonzero()[:, 0]
        logits = self.logits(x, which)
        losses, residuals, first = [], [], 0
        for (evaluation, J), (codes, w), heads in zip(self._each(), pairs, fitted, strict=True):
            if which is not None:
                codes, w = codes[heads], w[heads]
            multiplied = logits[first : first + len(w) * J].view(len(w), J, len(x))
            part = _with_last(multiplied, evaluation.group)
            loss = w.new_zeros(len(heads), dtype=torch.float64)
            loss[heads] = loss_and_residual(part, codes, w)
            losses.append(loss)
            residuals.append(part[:, :J].flatten(0, 1))
            first += len(w) * J
        residual = torch.cat(residuals)
        return which, times_transposed(residual, x.T), residual.sum(dim=1, dtype=torch.float64), losses

    def held_out(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return logits (T, K, B) of a block, by the heads of each row's fold or by the tasks' only heads.

        For the single evaluation of all heads of a group.
        """
        group = self.evaluations[0].group
        if not group.folds:
            return self.by_evaluation(self.logits(x))[0]
        fold = group.fold[:, start:stop]
        T, (J,) = group.n_tasks, self.multiplied
        index = torch.arange(T * group.folds * J, device=x.device).view(T, group.folds, J)
        out = x.new_zeros(T, J, len(x))
        for number in set(fold.unique().tolist()) - {NO_FOLD}:
            logits = self.logits(x, index[:, number].flatten()).view(T, J, len(x))
            out = torch.where((fold == number)[:, None], logits, out)
        return _with_last(out, group)

    def _each(self) -> Iterator[tuple[Evaluation, int]]:
        return zip(self.evaluations, self.multiplied, strict=True)


def _with_last(columns: Tensor, group: TaskGroup) -> Tensor:
    """Return (A, K, …) for the multiplied columns (A, J, …): all columns of a softmax sum to zero."""
    if group.columns == 1:
        return columns
    return torch.cat([columns, -columns.sum(dim=1, keepdim=True)], dim=1)


def _coupled_block(p: Tensor, weights: Tensor, lead: Tensor) -> Tensor:
    """Return Σ_i S_i ⊗ x_i x_iᵀ (K · q, K · q) for probabilities (K, B), weights (B,) and coordinates (q, B).

    The coordinates lie along memory: with rows there, scaling them takes longer than the product.
    """
    K, q = len(p), len(lead)
    out = lead.new_empty(K, q, K, q)
    for k in range(K):  # the rest is symmetric
        rows = coupled_curvature(p, weights, k)[:, None]
        part = ((rows * lead).flatten(0, 1) @ lead.T).view(k + 1, q, q)
        out[k, :, : k + 1] = part.transpose(0, 1)
        out[: k + 1, :, k] = part
    return out.view(K * q, K * q)
