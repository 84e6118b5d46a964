"""Memory that was freed, handed back to the system.

glibc keeps freed blocks of up to 32 MiB for the next who asks. After a fit on a million rows that were 200
MiB, and after each of its measurements 60, on top of which what came next took its own.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def hand_back() -> None:
    """Give the system what no object uses any more; where the C library is not glibc, nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
