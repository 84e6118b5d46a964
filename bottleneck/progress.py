"""Report progress of long operations. The library calls a `Reporter`; the command line draws it.

    with reporter.step("Extracting", total=len(keys), unit="images") as advance:
        advance(1)

`SILENT`, the default of every public function, ignores everything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

JOINERS = "\u200c\u200d"  # format characters that words of some scripts, and emojis, need
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: control, format, surrogates, line separators


class Reporter:
    """Receive progress, messages and epoch records. Subclass it and override what you want to show.

    started : when the user began to wait, by `time.perf_counter`; None is the call that has this reporter.
    """

    started: float | None = None

    @contextmanager
    def step(
        self, name: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Open one long step; call the yielded function with the number of units just done.

        unit : in the plural, of the rate that is shown; none is shown without it.
        """
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


def printable(text: str) -> str:
    r"""Return `text` as one line; characters that steer a terminal or reverse its text are escaped.

    The character of code 27 is shown as \x1b, as Python writes it.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in HIDDEN and character not in JOINERS
        else character
        for character in text
    )
