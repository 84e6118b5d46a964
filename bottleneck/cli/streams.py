"""Text for a terminal: safe to print, in any encoding; a stream that fails does not end the work."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class SafeStream(io.TextIOBase):
    """A text stream that stores its first error in `error` and drops what is written later."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None
        with suppress(AttributeError):  # a stream without an encoding, such as that of a test
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Remember the error and send what the buffer still holds to the null device."""
        self.error = error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]  # TextIOBase calls it an attribute
        return str(self._stream.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return str(self._stream.errors)


def protect_streams() -> tuple[SafeStream, SafeStream]:
    """Replace `sys.stdout` and `sys.stderr` by safe streams, and return them.

    Descriptors that are closed are opened on the null device: a file of ours must not become descriptor 1.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, SafeStream):
            stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole run
            setattr(sys, name, SafeStream(stream))
    return sys.stdout, sys.stderr  # type: ignore[return-value]  # just set
