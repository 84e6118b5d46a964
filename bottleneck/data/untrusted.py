"""The fence around a library that parses a stranger's bytes.

Whatever such a parser raises or warns of there is about the bytes: the image fails with a reason, and the
user's process sees neither the exception nor the warning.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bottleneck.errors import ImageError


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn any exception of the block into an ImageError that begins with `what`, and drop its warnings.

    Only calls into the parser belong inside, so that a defect of our own still surfaces as itself.
    """
    with _quiet():
        try:
            yield
        except MemoryError:
            raise ImageError("needs more memory than there is") from None
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{what}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What a library's exception says, fit for a list of failures: one short line of printable text."""
    text = repr(str(error))[1:-1] or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


class _Parsing:
    """The message pattern of one warning filter: it matches only in threads that are inside `parsing`."""

    here = threading.local()

    def match(self, text: str) -> bool:
        return getattr(self.here, "inside", False)


_FILTER = ("ignore", _Parsing(), Warning, None, 0)
_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop this thread's warnings, and no other's.

    `warnings.catch_warnings` swaps the filters of the whole process; two threads that leave it in the wrong
    order lose the user's filters for good. So one filter is added that does nothing outside of this block.
    """
    with _lock:
        if not warnings.filters or warnings.filters[0] is not _FILTER:  # a test or a user changed the filters
            if _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)
            warnings.filters.insert(0, _FILTER)
    _Parsing.here.inside = True
    try:
        yield
    finally:
        _Parsing.here.inside = False
