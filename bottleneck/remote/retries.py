"""Requests over a network: how long one may take, when it is sent again, and when a host is given up.

The limits below hold for every backend, a web server like an object store. A server that never sends a byte
ends a request after (1 + RETRIES) · TIMEOUT seconds and the pauses. After MOST_SILENT such requests in a row
it is not asked any more: the rest of a run then fails at once, by name, and the next run tries again.
"""

from __future__ import annotations

import errno
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from socket import EAI_NONAME, gaierror
from typing import TypeVar

from bottleneck.errors import ImageError, Note, counted
from bottleneck.remote.urls import host_of, one_line, without_secrets

TIMEOUT = 15.0  # seconds without an answer, or without another byte
SLOWEST = 10_000  # bytes a second, on average, beyond the first TIMEOUT seconds
RETRIES = 3
FIRST_PAUSE = 0.5  # seconds before the first retry; doubled each time, or what the server asks for
LONGEST_PAUSES = 10.0  # seconds of all pauses together; a server that asks for more is given up
MOST_SILENT = 32  # requests in a row that failed after all retries
NAMED = 3  # reasons that a note names

Result = TypeVar("Result")

# What a later request answers alike. Other OSErrors, and errors of packages that use a network, may pass.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_LASTING_NUMBERS = (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSPC)
_LASTING_NAMES = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"),
    "SSLCertVerificationError",
)
_NETWORK = (
    *("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "httpcore", "httpx", "huggingface_hub"),
    *("requests", "urllib3"),
)


class Refused(OSError):
    """The server's answer is an error that it would give again."""


class Passing(OSError):
    """A request failed so that it may succeed soon. pause : seconds that the server asks for."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


def seconds_for(size: int) -> float:
    """Return how long one attempt may take to send `size` bytes."""
    return TIMEOUT + max(0, size) / SLOWEST


def seconds_with_retries(size: int) -> float:
    """Return how long a request for `size` bytes may take with all its retries and pauses."""
    return (1 + RETRIES) * seconds_for(size) + LONGEST_PAUSES


def may_pass(error: BaseException) -> bool:
    """Return whether a request that failed by `error` may succeed when it is sent again."""
    if isinstance(error, ImageError) or type(error).__name__ in _LASTING_NAMES:
        return False  # an ImageError tells of the bytes, or of the address
    if isinstance(error, gaierror):
        return error.errno != EAI_NONAME
    if isinstance(error, OSError):
        lasting = isinstance(error, (Refused, *_LASTING)) or error.errno in _LASTING_NUMBERS
        return not lasting
    return type(error).__module__.split(".")[0] in _NETWORK


class Retrier:
    """Sends requests again and counts what happened; one for a source. Several threads call it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent: Counter[str] = Counter()  # requests in a row that failed, by host
        self._skipped: Counter[str] = Counter()  # requests that were not sent, by host
        self._retried: Counter[str] = Counter()  # by reason

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickle nothing: another process counts its own requests."""
        return Retrier, ()

    def run(self, url: str, attempt: Callable[[float], Result], size: int = 0) -> Result:
        """Return attempt(seconds), called again where it fails so that it may succeed soon.

        url : what is asked for, or its store; its host is the one that is given up.
        attempt : gets the seconds that it may take, and raises TimeoutError after them.
        size : bytes that are expected, 0 where unknown.
        """
        host = _host_named(url)
        self._require_answers(host)
        left = LONGEST_PAUSES
        for tries in count():
            try:
                result = attempt(seconds_for(size))
            except Exception as error:  # each backend has error classes of its own
                if not may_pass(error):
                    self._answered(host)
                    raise
                asked = getattr(error, "pause", None)
                pause = FIRST_PAUSE * 2**tries * random.uniform(0.75, 1.25) if asked is None else asked
                if tries == RETRIES or pause > left or self._silent[host] >= MOST_SILENT:
                    with self._lock:
                        self._silent[host] += 1
                    raise
                self.count(_reason(error))
            else:
                self._answered(host)
                return result
            left -= pause
            time.sleep(pause)
        raise AssertionError

    def count(self, reason: str) -> None:
        """Count a request that is sent again."""
        with self._lock:
            self._retried[reason] += 1

    def _require_answers(self, host: str) -> None:
        if self._silent[host] < MOST_SILENT:
            return
        with self._lock:
            self._skipped[host] += 1
        raise Passing(f"not asked for, since {MOST_SILENT} requests in a row to {host} failed")

    def _answered(self, host: str) -> None:
        if self._silent[host]:
            with self._lock:
                self._silent[host] = 0

    def taken(self) -> tuple[Counter[str], Counter[str]]:
        """Return the requests that were sent again, by reason, and those not sent, by host; forget them."""
        with self._lock:
            counts = self._retried, self._skipped
            self._retried, self._skipped = Counter(), Counter()
        return counts

    def add(self, retried: Counter[str], skipped: Counter[str]) -> None:
        """Count what another process has counted (`taken`)."""
        with self._lock:
            self._retried += retried
            self._skipped += skipped

    def notes(self) -> list[Note]:
        """Return notes on requests that were sent again, and on hosts that were given up."""
        notes = []
        if total := self._retried.total():
            named = "; ".join(f"{reason} ({times:,})" for reason, times in self._retried.most_common(NAMED))
            failed = "request for a file failed and was", "requests for files failed and were"
            message = f"{counted(total, *failed)} sent again: {named}."
            notes.append(Note("requests-retried", message, details={"requests": total}))
        for host, skipped in self._skipped.items():
            message = (
                f"{MOST_SILENT} requests in a row to {host} failed, each {1 + RETRIES} times, so {skipped:,} "
                "more were not sent. Run the same command again when it answers: what failed is tried again."
            )
            notes.append(Note("host-given-up", message, details={"host": host, "requests": skipped}))
        return notes


def _reason(error: Exception) -> str:
    """Return why a request failed, without its address, so that equal reasons are counted together."""
    return re.split(r"\W*[a-z0-9]+://", one_line(error))[0] or type(error).__name__


def _host_named(url: str) -> str:
    """Return the host of a URL, for a sentence; the innermost of a chain."""
    last = url.rpartition("::")[2]
    scheme, host = host_of(last) or ("", "")
    return f"{scheme}://{host.rpartition('@')[2]}" if host else without_secrets(last)
