"""What `train` would do and cost, said before anything is computed. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from bottleneck.errors import Note
from bottleneck.studies.train.budget import FINAL, ExtractionCost, fits_seconds, within_time
from bottleneck.studies.train.features import costs
from bottleneck.studies.train.request import Request

STARTUP = 6.0  # seconds that are kept free for loading networks and writing the model
DEGRADED = ("fine-tuning", "combinations of nodes", "heads on the lowest stages", "samples")


@dataclass(frozen=True)
class TrainPlan:
    """What `train` would do.

    extraction : one cost per backbone. heads : number of heads on single nodes. combinations : at most.
    head_seconds : of all heads and the final fit. finetuning : whether it may be tried.
    samples : that are learnt from and measured, of those that there are.
    """

    model: str
    extraction: list[ExtractionCost]
    heads: int
    combinations: int
    head_seconds: float
    finetuning: bool
    samples: int
    samples_of: int
    minutes: float | None
    notes: list[Note] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the whole run without fine-tuning."""
        return STARTUP + self.head_seconds + sum(cost.seconds for cost in self.extraction)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(cost.bytes for cost in self.extraction)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck train --plan --json`."""
        extraction = [vars(cost) for cost in self.extraction]
        notes = [note.to_json() for note in self.notes]
        more = {"seconds": self.seconds, "bytes": self.bytes, "saved_first": list(DEGRADED)}
        return {**vars(self), **more, "extraction": extraction, "notes": notes}


def plan(request: Request) -> TrainPlan:
    """Say what would be done. Errors as from `train` before its first image."""
    request.require_learnable()
    extraction = costs(request)
    source, notes = within_time(request.source, extraction, request.config.target, request.config.minutes)
    share = len(source.samples) / max(1, len(request.source.samples))
    widths = [
        [prod(cost.nodes[node]) for node in request.nodes[cost.backbone] if node in cost.nodes]
        for cost in extraction
    ]
    sizes = [size for each in widths for size in each] + [sum(each) for each in widths]
    fits = fits_seconds(source, request.config.target, sizes)
    return TrainPlan(
        model=str(request.model),
        extraction=[_part(cost, share) for cost in extraction],
        heads=sum(len(each) for each in widths),
        combinations=4 * len(extraction),
        head_seconds=sum(fits) + FINAL * max(fits, default=0.0),
        finetuning=False,
        samples=len(source.samples),
        samples_of=len(request.source.samples),
        minutes=request.config.minutes,
        notes=[*request.source.notes, *notes],
    )


def _part(cost: ExtractionCost, share: float) -> ExtractionCost:
    """Return the cost of a share of the images."""
    return replace(
        cost,
        images=round(cost.images * share),
        seconds=cost.seconds * share,
        bytes=round(cost.bytes * share),
    )
