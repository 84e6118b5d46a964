"""A learning rate found by trying: raise it from step to step and watch the loss (Smith 2017).

The loss falls, reaches a lowest point, and rises steeply where training would diverge. A tenth of the rate at
the lowest point of the smoothed loss is a safe maximum for a schedule with warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch

from bottleneck.errors import FitError, Note
from bottleneck.progress import SILENT, Reporter
from bottleneck.training.loop import Training

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
SMOOTHING = 0.9  # weight of the past in the smoothed loss
BLOWN_UP = 4.0  # times the lowest loss: there the trial ends
MARGIN = 10.0


@dataclass(frozen=True)
class FoundRate:
    """lr : the suggestion for the head. rates, losses : the curve, losses smoothed. notes : on the data."""

    lr: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    notes: tuple[Note, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck finetune --find-lr --json` without the figure."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}


def find_rate(training: Training, reporter: Reporter = SILENT) -> FoundRate:
    """Try rates of the head from 1e-6 to 10, the others in proportion; the network keeps its parameters.

    training : a run that has not begun. Its optimizer cannot be used again: build another run to train.

    Raises FitError where the loss is not finite at the lowest rate.
    """
    module = training.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    tried: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    base = training.optimizer.param_groups[0]["base_lr"]
    batches = chain.from_iterable(training.train.epoch(epoch) for epoch in count(1))
    with (
        torch.random.fork_rng(devices=[]),
        reporter.step("Finding a learning rate", STEPS, "steps") as advance,
    ):
        for step, (rate, batch) in enumerate(zip(rates, islice(batches, STEPS), strict=True), start=1):
            for group in training.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate / base
            loss, _ = training.update(batch)
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smooth = mean / (1 - SMOOTHING**step)
            advance(1)
            if not math.isfinite(smooth) or (losses and smooth > BLOWN_UP * min(losses)):
                break
            tried.append(float(rate))
            losses.append(smooth)
    module.load_state_dict(before)
    if not losses:
        raise FitError(
            f"The loss is not finite even at a learning rate of {LOWEST:g}.",
            "Look for values in the cache that are not numbers: bottleneck cache verify.",
        )
    return FoundRate(tried[int(np.argmin(losses))] / MARGIN, tuple(tried), tuple(losses))
