"""Report progress of long operations. The library calls a `Reporter`; the command line draws it.

    with reporter.step("Extracting", total=len(keys), unit="images") as advance:
        advance(1)

`SILENT`, the default of every public function, ignores everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Reporter:
    """Receive progress, messages and epoch records. Subclass it and override what you want to show.

    started : when the user began to wait, by `time.perf_counter`; None is the call that has this reporter.
    """

    started: float | None = None

    @contextmanager
    def step(
        self, name: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Open one long step; call the yielded function with the number of units just done."""
        yield lambda done: None

    def tell(self, text: str) -> None:
        """Receive one line for the user, for example the cost of the next step before it starts."""

    def epoch(self, record: Any) -> None:
        """Receive the `EpochRecord` of a training epoch as soon as it ends."""


SILENT = Reporter()


def duration(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def probability(value: float) -> str:
    """Return a probability for people: no model is certain, so none is 0 or 1."""
    if value > 0.9999:
        return "> 0.9999"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
