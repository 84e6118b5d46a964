"""Call a library that parses a stranger's bytes: exceptions become ImageError, warnings are dropped.

What a C library prints is collected as well (`printed`).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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


@contextmanager
def printed() -> Iterator[list[str]]:
    """Collect the lines that C libraries print on stderr in this thread within the block.

    libjpeg tells of a damaged scan only so. Where the C library is not glibc they are printed, not collected.
    """
    _redirect_stderr()
    lines: list[str] = []
    _Printing.here.lines = lines
    try:
        yield lines
    finally:
        _Printing.here.lines = None


class _Printing:
    here = threading.local()


class _CookieFunctions(ctypes.Structure):
    """`cookie_io_functions_t` of glibc."""

    _fields_ = (
        ("read", ctypes.c_void_p),
        (
            "write",
            _WRITE := ctypes.CFUNCTYPE(
                ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
            ),
        ),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


@cache
def _redirect_stderr() -> None:
    """Let C's `stderr`, not Python's and not descriptor 2, call `_print` in the thread that prints."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.fopencookie.restype = ctypes.c_void_p
    libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _CookieFunctions]
    libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    functions = _CookieFunctions(write=_print)
    stream = libc.fopencookie(None, b"w", functions)
    if not stream:
        return
    libc.setvbuf(stream, None, 1, 1024)  # by lines
    stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    before, stderr.value = stderr.value, stream
    atexit.register(setattr, stderr, "value", before)


@_CookieFunctions._WRITE  # type: ignore[untyped-decorator]  # made by ctypes
def _print(cookie: int | None, text: Any, size: int) -> int:
    lines = getattr(_Printing.here, "lines", None)
    if lines is None:
        os.write(2, text[:size])
    else:
        lines += text[:size].decode("utf-8", "replace").splitlines()
    return size
