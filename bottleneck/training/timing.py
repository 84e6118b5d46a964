"""What training will cost, told before it starts: one step is timed on rows of zeros.

Shapes: B samples of a batch, M images per sample, P covariates, K logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Pace:
    """Seconds that one sample takes: `training`, forward and backward; `measuring`, forward alone."""

    training: float
    measuring: float

    def seconds(self, epochs: int, train: int, val: int, others: int = 0) -> float:
        """A whole run: the start measured on val, then epochs, then the best one measured on all splits."""
        return self.training * epochs * train + self.measuring * ((epochs + 2) * val + train + others)


def pace(
    network: nn.Module, row: tuple[int, ...], dtype: np.dtype, images: int, covariates: int, batch: int
) -> Pace:
    """Time one step of a network whose parameters all train; it keeps its parameters.

    Parameters
    ----------
    network : called with rows (B, M, …) and covariates (B, P), gives logits (B, K)
    row, dtype : of one image's row
    images, covariates, batch : M, P and B
    """
    rows = torch.from_numpy(np.zeros((batch, images, *row), dtype))
    known = torch.zeros(batch, covariates)
    network.train().requires_grad_(True)

    def step() -> None:
        network(rows, known).sum().backward()
        network.zero_grad(set_to_none=True)

    training = _timed(step)
    network.eval()
    with torch.inference_mode():
        measuring = _timed(lambda: network(rows, known))
    return Pace(training / batch, measuring / batch)


def duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _timed(call: Callable[[], object]) -> float:
    """Seconds of the second call: the first one has libraries choose their ways."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
