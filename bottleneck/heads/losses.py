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
    true = codes[:, None]
    logits -= logits.amax(dim=1, keepdim=True)
    loss = logits.gather(1, true)[:, 0].neg_()
    total = logits.exp_().sum(dim=1)
    loss += total.log()
    logits *= (weights / total)[:, None]
    logits.scatter_add_(1, true, -weights[:, None])
    return loss


def _sigmoid(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    y = codes.to(logits.dtype)
    loss = torch.logaddexp(logits, torch.zeros_like(logits)) - y * logits
    logits.sigmoid_().sub_(y).mul_(weights)
    return loss


def curvature(logits: Tensor, weights: Tensor) -> Tensor:
    """Second derivative of the weighted loss by each logit, w p (1 − p). (A, K, B), (A, B) → (A, K, B)."""
    p = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
    return p * (1 - p) * weights[:, None]
