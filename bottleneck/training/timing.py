"""An estimate of what training will cost, before it starts: one step is timed on rows of zeros.

Shapes: B samples of a batch, M images per sample, P covariates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bottleneck.training.job import TrainingJob


@dataclass(frozen=True)
class Pace:
    """Seconds that one sample takes: `training`, forward and backward; `measuring`, forward alone."""

    training: float
    measuring: float

    def seconds(self, epochs: int, train: int, val: int, others: int = 0) -> float:
        """A whole run: the start measured on val, then epochs, then the best one measured on all splits."""
        return self.training * epochs * train + self.measuring * ((epochs + 2) * val + train + others)


def pace(job: TrainingJob[Any]) -> Pace:
    """Time a step of a job's network on zeros, with all parameters trained; they do not change."""
    network, rows, samples = job.network, job.inputs.plain, job.samples["train"]
    B, M, P = job.config.batch_size, samples.image.shape[1], samples.covariates.shape[1]
    batch = torch.from_numpy(np.zeros((B, M, *rows.shape[1:]), rows.dtype)).to(job.device)
    covariates = torch.zeros(B, P, device=job.device)
    network.train().requires_grad_(True)

    def step() -> None:
        network(batch, covariates).sum().backward()
        network.zero_grad(set_to_none=True)

    training = _timed(step)
    network.eval()
    with torch.inference_mode():
        measuring = _timed(lambda: network(batch, covariates))
    return Pace(training / B, measuring / B)


def duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _timed(call: Callable[[], object]) -> float:
    """Seconds of the second call; in the first, libraries choose their algorithms."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
