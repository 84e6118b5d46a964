"""What extraction and fits cost, and how `train` keeps to the minutes that it is given.

Seconds of extraction are measured on a few of the images, through the engine that will run; seconds of fits
follow from their size and the speed of a matrix product here. Nothing is written.

Where the time is short, it is saved in this order: no fine-tuning; fewer combinations of nodes; fewer nodes,
the lowest stages first; and where extraction and the least of fits take too long, fewer samples, spread
evenly over splits and classes. A head on each backbone's bottleneck and the final fit are always kept.

Shapes: n samples, D features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from bottleneck.data.preprocess import MIRROR
from bottleneck.data.source import Source, evenly
from bottleneck.data.splits import strata
from bottleneck.errors import BottleneckError, Note, counted, verb
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.prepare import prepare
from bottleneck.extraction.survey import survey
from bottleneck.names import BOTTLENECK
from bottleneck.progress import duration
from bottleneck.samples import Target

TRIED = 48  # images on which the speed of extraction is measured
FIRST = 2  # of them, with which the engine is built
LEAST_OF_EACH = 2  # samples of a class, without which nothing is learnt
EXTRACTION_SHARE = 0.7  # of the minutes: fewer samples where extraction and the least of fits take longer
# Of one head with folds, by its time on 100 to 1,000 samples of 1,280 and 5,000 features, 2 and 10 classes.
FIT_WORK = 8000  # floating-point operations' time per sample and feature
FIT_WORK_OF_CLASS = 1000  # the same per class
FIT_LEAST = 0.3  # seconds
FINAL = 1.5  # the final fit, with reading and writing, in fits of the chosen candidate


@dataclass(frozen=True)
class ExtractionCost:
    """Extraction by one backbone. images : to be read. seconds, bytes : that it takes.

    per_image : seconds of one image; 0 where it was not needed. startup : seconds of loading the network and
    building its engine, beside those of the images. known_by : how the seconds are known.
    """

    backbone: str
    cache: str
    nodes: dict[str, tuple[int, ...]]
    images: int
    seconds: float
    bytes: int
    per_image: float = 0.0
    known_by: str = ""
    startup: float = 0.0

    def __str__(self) -> str:
        return f"{counted(self.images, 'image')} through {self.backbone}, {counted(len(self.nodes), 'node')}"


def extraction_cost(
    source: Source,
    path: Path,
    config: ExtractConfig,
    nodes: Sequence[str],
    per_image: float = 0.0,
    startup: float = 0.0,
) -> ExtractionCost:
    """Return what extracting `nodes` of `source` into the cache `path` takes. Errors as from `extract`.

    per_image, startup : seconds of one image, and before the first, in an earlier run; else measured.
    """
    would = survey(source, path, replace(config, nodes=tuple(nodes)))
    known_by = "an earlier run"
    if not would.to_read:
        known_by = "nothing is new"
    elif not per_image:
        per_image, startup, count = seconds_an_image(source, path, config, nodes)
        known_by = f"measured on {counted(count, 'image')}"
    return ExtractionCost(
        backbone=config.backbone or "",
        cache=str(path),
        nodes=would.nodes,
        images=would.to_read,
        seconds=per_image * would.to_read,
        bytes=would.bytes_to_write,
        per_image=per_image,
        known_by=known_by,
        startup=startup if would.to_read else 0.0,
    )


def seconds_an_image(
    source: Source, path: Path, config: ExtractConfig, nodes: Sequence[str]
) -> tuple[float, float, int]:
    """Measure the seconds of one image on up to `TRIED`, through the engine that will run.

    Returns them, the seconds before the first image, and the number of images.
    """
    began = time.perf_counter()
    extraction = prepare(replace(config, nodes=tuple(nodes)), source, path)
    views = MIRROR if config.flip else None
    indices = np.unique(np.linspace(0, len(source.images) - 1, TRIED).astype(int))
    keys = [source.images[i] for i in indices]
    for _ in extraction.trunk.stream(source, keys[:FIRST], nodes, views=views):
        pass  # the engine is built
    started = time.perf_counter()
    for _ in extraction.trunk.stream(source, keys, nodes, views=views):
        pass
    return (time.perf_counter() - started) / len(keys), started - began, len(keys)


def fit_seconds(n: int, D: int, K: int) -> float:
    """Return an estimate of the seconds that one head with cross-validation takes here."""
    side = np.ones((512, 512), np.float32)
    side @ side
    started = time.perf_counter()
    for _ in range(4):
        side @ side
    speed = 4 * 2 * 512**3 / (time.perf_counter() - started)
    columns = K if K > 2 else 1  # two classes are one sigmoid
    return FIT_LEAST + (FIT_WORK + FIT_WORK_OF_CLASS * columns) * n * D / speed


def target_of(source: Source, name: str | None) -> Target:
    """Return the target `name` of a source that has it, or its first one."""
    targets = source.samples.targets
    return targets[name] if name else next(iter(targets.values()))


def fits_seconds(source: Source, target: str | None, widths: Sequence[int]) -> list[float]:
    """Return an estimate of the seconds of a head on each node. widths : features of one image, by node."""
    samples = source.samples
    K = len(target_of(source, target).class_names)
    n, M = int((samples.split != "test").sum()), samples.image.shape[1]
    return [fit_seconds(n, M * width, K) for width in widths]


def within_time(
    source: Source, costs: Sequence[ExtractionCost], target: str | None, minutes: float | None
) -> tuple[Source, list[Note]]:
    """Return as many samples of the source as can be extracted and fitted in time, and a note on the others.

    The least of fits are one head of each backbone, on its bottleneck, and the final fit.
    """
    fits = fits_seconds(source, target, [prod(cost.nodes[BOTTLENECK]) for cost in costs])
    seconds = sum(cost.seconds for cost in costs) + sum(fits) + FINAL * max(fits, default=0.0)
    if minutes is None:
        return source, []
    allowed = EXTRACTION_SHARE * 60 * minutes - sum(cost.startup for cost in costs)
    if seconds <= allowed:
        return source, []
    S, groups = len(source.samples), len(np.unique(strata(source.samples)))
    kept = min(S, int(S * max(allowed, 0) / seconds))
    if kept < LEAST_OF_EACH * groups:
        raise BottleneckError(
            f"The time is too short: extraction of all {counted(S, 'sample')} and a head would take about "
            f"{duration(seconds)}, "
            f"and {counted(max(kept, 0), 'sample')} in what is given are fewer than {LEAST_OF_EACH} of "
            "each class.",
            "Give more --minutes, or leave it out.",
        )
    text = (
        f"Extraction and a head would take about {duration(seconds)}, and {duration(60 * minutes)} are left: "
        f"{kept:,} of {counted(S, 'sample')} {verb(kept)} used, evenly of splits and "
        "classes. Without --minutes all are."
    )
    note = Note("samples-limited", text, True, {"samples": kept, "of": S, "seconds": seconds})
    return evenly(source, kept), [note]


class Clock:
    """The time that a run has: from `started` (`time.perf_counter()`), `minutes` or as much as it needs."""

    def __init__(self, started: float, minutes: float | None) -> None:
        self.started, self.minutes = started, minutes
        self.per_image = 0.0  # seconds of extraction
        self._units: dict[int, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def allows(self, seconds: float) -> bool:
        """Return whether work of so many seconds ends in time."""
        return self.minutes is None or self.elapsed + seconds <= 60 * self.minutes

    def learn(self, D: int, seconds: float) -> None:
        """Take the seconds of a finished fit on D features."""
        self._units[D] = max(seconds, self._units.get(D, 0.0))

    def fit(self, D: int) -> float:
        """Return the seconds that a fit on D features takes, by those that are finished."""
        if not self._units:
            return 0.0
        rate = max(seconds / size for size, seconds in self._units.items())
        nearest = max((size for size in self._units if size <= D), default=min(self._units))
        return min(rate * D, self._units[nearest] * max(1.0, D / nearest))
