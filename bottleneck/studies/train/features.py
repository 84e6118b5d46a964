"""The features of every stage, extracted in one pass for each backbone, of as many samples as time allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from bottleneck.data.source import Source, evenly
from bottleneck.errors import Note, refuse_strict
from bottleneck.extraction.extract import ExtractResult, run_extraction
from bottleneck.fitting.head_files import file_name
from bottleneck.store.spec import fingerprint
from bottleneck.studies.train.budget import Clock, ExtractionCost, extraction_cost, within_time
from bottleneck.studies.train.request import Request
from bottleneck.threads import available_cores

ENOUGH = 32  # images of a run, whose seconds tell those of later images


def extract_all(request: Request, clock: Clock) -> tuple[dict[str, ExtractResult], list[Note]]:
    """Extract all nodes of each backbone, and return the results by backbone and all notes."""
    source, notes = request.source, list[Note]()
    if request.config.minutes is not None:
        source, notes = _limited(request, costs(request), request.config.minutes - clock.elapsed / 60)
        refuse_strict(notes, request.strict)
        for note in notes:
            request.reporter.tell(f"Note: {note}")
    extracted = {name: _extract(request, source, name) for name in request.backbones}
    for name, result in extracted.items():
        result.require_rows()
        notes += result.notes
        if result.computed >= ENOUGH:
            values = {"seconds": result.seconds / result.computed, "startup": result.startup_seconds}
            request.records.write(_pace_name(name), _pace_fingerprint(request, name), values, {})
        clock.per_image = max(clock.per_image, stored_pace(request, name)[0])
    return extracted, notes


def stored_pace(request: Request, backbone: str) -> tuple[float, float]:
    """Return the seconds of one image, and before the first, in an earlier run with these settings, or 0."""
    stored = request.records.read(_pace_name(backbone), _pace_fingerprint(request, backbone))
    return (stored[0]["seconds"], stored[0]["startup"]) if stored else (0.0, 0.0)


def _pace_name(backbone: str) -> str:
    return file_name("pace", backbone)


def _pace_fingerprint(request: Request, backbone: str) -> str:
    settings = asdict(replace(request.extraction_by(backbone), seed=None))
    return fingerprint({"extraction": settings, "cores": available_cores()})


def costs(request: Request) -> list[ExtractionCost]:
    """Return what extraction costs, by backbone in their order."""
    return [
        extraction_cost(
            request.source,
            request.paths[name],
            request.extraction_by(name),
            request.nodes[name],
            *stored_pace(request, name),
        )
        for name in request.backbones
    ]


def _limited(request: Request, costs: Sequence[ExtractionCost], minutes: float) -> tuple[Source, list[Note]]:
    """Return the samples that can be extracted in time; a resumed run keeps to its first number."""
    location = {"source": request.source.location, "samples": len(request.source.samples)}
    inputs = fingerprint({**location, "settings": request.fingerprint})
    if stored := request.records.read("samples", inputs):
        return evenly(request.source, stored[0]["samples"]), [Note(**stored[0]["note"])]
    source, notes = within_time(request.source, costs, request.config.target, minutes)
    if notes:
        values = {"samples": len(source.samples), "note": asdict(notes[0])}
        request.records.write("samples", inputs, values, {"none": np.zeros(1)})
    return source, notes


def _extract(request: Request, source: Source, backbone: str) -> ExtractResult:
    path = request.paths[backbone]
    config = replace(request.extraction_by(backbone), nodes=tuple(request.nodes[backbone]))
    return run_extraction(source, path, config, request.reporter, request.strict)
