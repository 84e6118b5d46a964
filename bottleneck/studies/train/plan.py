"""What `train` would do and cost, said before anything is computed. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from bottleneck.data.source import Source
from bottleneck.errors import Note
from bottleneck.studies.train.budget import FINAL, ExtractionCost, fits_seconds, seconds_an_image, within_time
from bottleneck.studies.train.features import costs, stored_pace
from bottleneck.studies.train.request import Request
from bottleneck.studies.train.tuning_cost import TuningCost, tuning_cost

STARTUP = 4.0  # seconds for loading libraries (3.8) and writing the model (0.2), on an Intel Xeon
DEGRADED = ("fine-tuning", "combinations of nodes", "heads on the lowest stages", "samples")


@dataclass(frozen=True)
class TrainPlan:
    """What `train` would do.

    extraction : one cost per backbone. heads : number of heads on single nodes. combinations : at most.
    head_seconds : of all heads and the final fit, estimated from their size.
    finetuning : whether it may be tried; that the best head leaves errors is known only later.
    tuning_seconds, tuning_bytes : of one tuned block at most, by the step that was timed. not_finetuned : why
        nothing will be tuned, else empty. known_by : how the seconds of each part are known.
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
    tuning_seconds: float = 0.0
    tuning_bytes: int = 0
    not_finetuned: str = ""
    known_by: dict[str, str] = field(default_factory=dict)

    @property
    def startup_seconds(self) -> float:
        """Seconds of loading libraries and networks, building engines, and writing the model."""
        return STARTUP + sum(cost.startup for cost in self.extraction)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run without fine-tuning."""
        return self.startup_seconds + self.head_seconds + sum(cost.seconds for cost in self.extraction)

    @property
    def bytes(self) -> int:
        """Bytes that the caches take on the disk."""
        return sum(cost.bytes for cost in self.extraction)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck train --plan --json`."""
        extraction = [vars(cost) for cost in self.extraction]
        notes = [note.to_json() for note in self.notes]
        more = {
            "seconds": self.seconds,
            "startup_seconds": self.startup_seconds,
            "bytes": self.bytes,
            "saved_first": list(DEGRADED),
        }
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
    tuning = _tuning(request, source, extraction)
    cost = TuningCost(0.0, 0) if isinstance(tuning, str) else tuning
    return TrainPlan(
        model=str(request.model),
        extraction=[_part(cost, share) for cost in extraction],
        heads=sum(len(each) for each in widths),
        combinations=4 * len(extraction),
        head_seconds=sum(fits) + FINAL * max(fits, default=0.0),
        finetuning=not isinstance(tuning, str),
        samples=len(source.samples),
        samples_of=len(request.source.samples),
        minutes=request.config.minutes,
        notes=[*request.source.notes, *notes],
        tuning_seconds=cost.seconds,
        tuning_bytes=cost.bytes,
        not_finetuned=tuning if isinstance(tuning, str) else "",
        known_by={
            **{f"extraction by {each.backbone}": each.known_by for each in extraction},
            "heads": "estimated from their size",
            "start": "partly guessed",
            "tuning": "" if isinstance(tuning, str) else "one step measured, times samples and epochs",
        },
    )


def _tuning(request: Request, source: Source, extraction: list[ExtractionCost]) -> TuningCost | str:
    """Return what tuning takes of the backbone for which it takes longest, or why nothing is tuned."""
    found = []
    for cost in extraction:
        name = cost.backbone
        per_image = cost.per_image or stored_pace(request, name)[0]
        tuning = tuning_cost(request, source, name, per_image)
        if isinstance(tuning, str):
            return tuning
        if not per_image:  # all features are cached
            config, path = request.extraction_by(name), request.paths[name]
            per_image, *_ = seconds_an_image(source, path, config, request.nodes[name])
            tuning = replace(tuning, seconds=tuning.seconds + per_image * len(source.images))
        found.append(tuning)
    return max(found, key=lambda tuning: tuning.seconds)


def _part(cost: ExtractionCost, share: float) -> ExtractionCost:
    """Return the cost of a share of the images."""
    return replace(
        cost,
        images=round(cost.images * share),
        seconds=cost.seconds * share,
        bytes=round(cost.bytes * share),
    )
