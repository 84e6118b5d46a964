"""Passes over the rows: one product for the logits of all heads of all groups, one for all their gradients.

The columns of a softmax sum to zero, as the penalty has it at the optimum; so do its residuals. The last
column is therefore never multiplied: it is what the others leave.

Shapes: A heads asked for in a group, K columns of a head, P = width + 1 coefficients (intercept last), J
columns of a head that are multiplied (K − 1, or 1 of a sigmoid), c those of all requests together, B rows of
a block, r leading coordinates.

Losses of a block of rows for many heads at once, with their residuals: what a step multiplies.

Logits are held with the rows last, so that every operation runs along memory; K is 1 for a sigmoid head.

Shapes: A heads, K logits of a head, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.problem import NO_FOLD, Group
from bottleneck.threads import WorkerPool


def loss_and_residual(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Weighted loss of each head on the block; its derivative by the logits takes the logits' place.

    Parameters
    ----------
    logits : (A, K, B); becomes the residual, w (p − 1[true]).
    codes : (A, B) int64, the true class; 0 or 1 where K is 1.
    weights : (A, B), 0 where a row is not the head's.

    Returns
    -------
    (A,) float64, Σ −w log p(true).
    """
    loss = (
        _sigmoid(logits[:, 0], codes, weights) if logits.shape[1] == 1 else _softmax(logits, codes, weights)
    )
    return (loss * weights).sum(dim=1, dtype=torch.float64)


def _softmax(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """1 − p(true) is summed from the other classes, or it would be lost to rounding where p is nearly 1."""
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
    """With the sign that makes the true class negative, both loss and residual keep their digits.

    The loss log(1 + exp z) is max(z, 0) + log(1 + e), e = exp −|z|, and log(1 + e) = 2 artanh(e / (2 + e)):
    torch's log1p takes 4 times as long on a CPU.
    """
    sign = 1 - 2 * codes.to(logits.dtype)
    logits *= sign
    e = logits.abs().neg_().exp_()
    loss = torch.atanh(e / (2 + e)).mul_(2).add_(logits.clamp(min=0))
    logits.sigmoid_().mul_(sign).mul_(weights)
    return loss


def curvature(logits: Tensor, weights: Tensor) -> Tensor:
    """Second derivative of the weighted loss by each logit, w p (1 − p). (A, K, B), (A, B) → (A, K, B)."""
    p = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
    return p * (1 - p) * weights[:, None]


def coupled_curvature(p: Tensor, weights: Tensor, k: int) -> Tensor:
    """Second derivatives by a softmax's logit k and those up to it, w (p_k [k = l] − p_k p_l).

    (K, B) probabilities, (B,) → (k + 1, B).
    """
    scaled = weights * p[k]
    rows = -scaled * p[: k + 1]
    # p (1 − p) is summed from the other classes: equal logits then have no curvature, whatever the rounding.
    rows[k] = scaled * (p[:k].sum(dim=0) + p[k + 1 :].sum(dim=0))
    return rows


@dataclass(frozen=True)
class Request:
    """Heads (A,) of a group at coef (A, K, P), which sum to zero over the columns of a softmax."""

    group: Group
    heads: Tensor
    coef: Tensor


class Passes:
    """Passes over a design by a crew."""

    def __init__(self, design: Design, crew: WorkerPool) -> None:
        self.design, self.crew = design, crew

    def gradients(self, requests: Sequence[Request]) -> list[tuple[Tensor, Tensor]]:
        """Loss (A,) and gradient (A, K, P), float64, of each request, over the rows its heads see."""
        columns = _Columns(self.design, requests)
        slope = torch.zeros(columns.coef.shape, dtype=torch.float64, device=self.design.device)
        offset = slope.new_zeros(len(slope))
        losses = [offset.new_zeros(len(request.heads)) for request in requests]
        for which, part, offset_part, block_losses in self.design.each_block(self.crew, columns.gradients):
            if which is None:
                slope += part
                offset += offset_part
            else:
                slope.index_add_(0, which, part.double())
                offset.index_add_(0, which, offset_part)
            for total, loss in zip(losses, block_losses, strict=True):
                total += loss
        slope = torch.cat([self.design.lower(slope), offset[:, None]], dim=1)
        return list(zip(losses, columns.by_request(slope), strict=True))

    def curvatures(self, request: Request, r: int, coupled: bool) -> Tensor:
        """Σ_i S_i ⊗ x_i x_iᵀ over r leading coordinates and a 1, S_i the second derivatives by the logits.

        coupled : a block for all K columns of a head together, else one for each of them.
        Returns float64 (A, 1, K · (r + 1), K · (r + 1)) or (A, K, r + 1, r + 1).
        """
        columns = _Columns(self.design, [request])

        def block(x: Tensor, start: int, stop: int) -> Tensor:
            _, w = request.group.fitted(request.heads, start, stop)
            (logits,) = columns.by_request(columns.logits(x))
            lead = torch.cat([self.design.leading(x, r), x.new_ones(len(x), 1)], dim=1)
            if coupled:
                pairs = zip(torch.softmax(logits, dim=1), w, strict=True)
                return torch.stack([_coupled(p, weights, lead)[None] for p, weights in pairs])
            return torch.stack([torch.stack([(s * lead.T) @ lead for s in S]) for S in curvature(logits, w)])

        return sum(part.double() for part in self.design.each_block(self.crew, block))

    def held_out(self, fits: Sequence[tuple[Group, Tensor]]) -> Iterator[tuple[int, int, list[Tensor]]]:
        """Logits of every task on each row by the head that was not fitted on it, block by block.

        fits : groups with the coefficients (H, K, P) of all their heads.
        Yields (start, stop, per group (T, K, B)); zeros where there are folds and none holds the row out.
        """
        columns = [
            _Columns(self.design, [Request(group, torch.arange(group.heads), coef)]) for group, coef in fits
        ]

        def block(x: Tensor, start: int, stop: int) -> tuple[int, int, list[Tensor]]:
            return (
                start,
                stop,
                [
                    _by_fold(group, part, x, start, stop)
                    for (group, _), part in zip(fits, columns, strict=True)
                ],
            )

        yield from self.design.each_block(self.crew, block)


class _Columns:
    """The coefficients of several requests as the rows of one matrix.

    coef : (c, D) as they multiply blocks, offset : (c,), multiplied : J of each request, sizes : A · J.
    """

    def __init__(self, design: Design, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.multiplied = [max(1, request.group.columns - 1) for request in requests]
        parts = [request.coef[:, :J].flatten(0, 1) for request, J in self._each()]
        self.sizes = [len(part) for part in parts]
        flat = torch.cat(parts)
        self.coef, self.offset = design.lift(flat[:, :-1]), flat[:, -1:]

    def logits(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        """(c, B) of a block (B, D), or of some columns."""
        if which is None:
            return (self.coef @ x.T).add_(self.offset)
        return (self.coef[which] @ x.T).add_(self.offset[which])

    def by_request(self, values: Tensor) -> list[Tensor]:
        """(A, K, …) of each request, of values (c, …) that sum to zero over the columns of a softmax."""
        parts = zip(values.split(self.sizes), self._each(), strict=True)
        return [_completed(part.unflatten(0, (-1, J)), request.group) for part, (request, J) in parts]

    def gradients(
        self, x: Tensor, start: int, stop: int
    ) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor]]:
        """Columns with a row here (None: all), their slopes (c, D) and (c,), and the losses of all heads."""
        answers = [request.group.fitted(request.heads, start, stop) for request in self.requests]
        here = [w.any(dim=1) for _, w in answers]
        which = None
        if not all(bool(heads.all()) for heads in here):
            marks = (h.repeat_interleave(J) for h, J in zip(here, self.multiplied, strict=True))
            which = torch.cat(list(marks)).nonzero()[:, 0]
        logits = self.logits(x, which)
        losses, residuals, at = [], [], 0
        for (request, J), (codes, w), heads in zip(self._each(), answers, here, strict=True):
            if which is not None:
                codes, w = codes[heads], w[heads]
            part = _completed(logits[at : at + len(w) * J].view(len(w), J, len(x)), request.group)
            loss = w.new_zeros(len(heads), dtype=torch.float64)
            loss[heads] = loss_and_residual(part, codes, w)
            losses.append(loss)
            residuals.append(part[:, :J].flatten(0, 1))
            at += len(w) * J
        residual = torch.cat(residuals)
        return which, residual @ x, residual.sum(dim=1, dtype=torch.float64), losses

    def _each(self) -> Iterator[tuple[Request, int]]:
        return zip(self.requests, self.multiplied, strict=True)


def _completed(columns: Tensor, group: Group) -> Tensor:
    """(A, K, …) of the multiplied columns (A, J, …)."""
    if group.columns == 1:
        return columns
    return torch.cat([columns, -columns.sum(dim=1, keepdim=True)], dim=1)


def _coupled(p: Tensor, weights: Tensor, lead: Tensor) -> Tensor:
    """Σ_i S_i ⊗ x_i x_iᵀ (K · q, K · q) of probabilities (K, B), weights (B,) and rows (B, q)."""
    K, q = len(p), lead.shape[1]
    out = lead.new_empty(K, q, K, q)
    for k in range(K):  # the rest is symmetric
        rows = coupled_curvature(p, weights, k)[:, None]
        part = ((rows * lead.T).flatten(0, 1) @ lead).view(k + 1, q, q)
        out[k, :, : k + 1] = part.transpose(0, 1)
        out[: k + 1, :, k] = part
    return out.view(K * q, K * q)


def _by_fold(group: Group, columns: _Columns, x: Tensor, start: int, stop: int) -> Tensor:
    """(T, K, B) logits of a block by the heads of each row's fold, or by those that have none."""
    if not group.folds:
        return columns.by_request(columns.logits(x))[0]
    fold = group.fold[:, start:stop]
    T, (J,) = group.tasks, columns.multiplied
    place = torch.arange(T * group.folds * J, device=x.device).view(T, group.folds, J)
    out = x.new_zeros(T, J, len(x))
    for number in set(fold.unique().tolist()) - {NO_FOLD}:
        logits = columns.logits(x, place[:, number].flatten()).view(T, J, len(x))
        out = torch.where((fold == number)[:, None], logits, out)
    return _completed(out, group)
