"""Progress of long steps, as the library reports it; the command line draws it.

A library function takes `progress` and calls it around each long step:

    with progress("Extracting", total=len(keys), unit="images") as advance:
        advance(1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Opens one step; the context's value is called with the number of units just done."""

    def __call__(
        self, step: str, total: int | None = None, unit: str = "images"
    ) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def silent(step: str, total: int | None = None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """The default of every library function: report nothing."""
    yield lambda done: None
