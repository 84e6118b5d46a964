"""Losses of a block of rows for many heads at once, with their residuals: what a step multiplies.

Logits are held with the rows last, so that every operation runs along memory; K is 1 for a sigmoid head.

Shapes: A heads, K logits of a head, B rows of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
