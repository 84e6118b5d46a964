"""Call a library that parses a stranger's bytes: exceptions become ImageError, warnings are dropped."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bottleneck.errors import ImageError


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn any exception of the block into an ImageError that begins with `what`, and drop its warnings.

    Put only calls into the parser inside, so that a defect of our own code is not hidden.
    """
    with _quiet():
        try:
            yield
        except MemoryError:
            raise ImageError("needs more memory than there is", passing=True) from None
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an exception's message as one short line of printable text, for a list of failures."""
    text = repr(str(error))[1:-1] or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


class _Parsing:
    """Message pattern of a warning filter that matches only in threads that are inside `parsing`."""

    here = threading.local()

    def match(self, text: str) -> bool:
        return getattr(self.here, "inside", False)


_FILTER = ("ignore", _Parsing(), Warning, None, 0)
_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warnings of this thread only.

    `warnings.catch_warnings` replaces the filters of the whole process; two threads that leave it in the
    wrong order lose the user's filters for good. So one filter is added that matches only in this block.
    """
    with _lock:
        filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typeshed: a Sequence; it is a list
        if not filters or filters[0] is not _FILTER:  # a test or a user changed the filters
            if _FILTER in filters:
                filters.remove(_FILTER)
            filters.insert(0, _FILTER)
    _Parsing.here.inside = True
    try:
        yield
    finally:
        _Parsing.here.inside = False
