"""Files of web servers as an fsspec filesystem, with the standard library alone.

fsspec's own HTTP filesystem needs two more packages. A web server lists no folders, so a source is an image,
a manifest or a .tar. Requests are GET and HEAD. Each ends within a bounded time, however slowly its answer
comes. It is sent once: an answer that the server may not give again (`PASSING`), a reset or a silence raise
what `retries` sends again.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any, NamedTuple
from urllib.parse import quote

from fsspec.spec import AbstractFileSystem

from bottleneck.errors import ImageError, first_line
from bottleneck.remote import retries
from bottleneck.remote.connections import Handler, SecureHandler, deadline, keep
from bottleneck.remote.retries import Passing, Refused, may_pass, seconds_for
from bottleneck.remote.urls import redirect_refusal

SCHEMES = ("http", "https")
PASSING = (408, 429, 500, 502, 503, 504)
MOST_BYTES = 1 << 30  # of an answer; a server may send without end
MOST_WHOLE = 64 << 20  # bytes of a file that is sent whole where a part was asked for
_SAFE = "/%:=&?~#+!$,;'@()*[]"  # not quoted in a URL; % keeps what is quoted already


class WebFileSystem(AbstractFileSystem):
    """Reads single files; paths are whole URLs.

    given : a URL that the user named, and which a server may therefore redirect to any host. Others, which a
        list names, are redirected on their host alone (`untrusted.redirect_refusal`).
    """

    protocol = SCHEMES
    limits_itself = True  # in time, as `retries` says

    def __init__(self, given: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.given = given

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return size, time of last change and version tag, where the server sends them. Raises OSError."""
        try:
            headers = self._fetch(path, method="HEAD").headers
        except _RefusedBy as error:
            if error.code not in (403, 405, 501):
                raise
            headers = self._fetch(path, read=False).headers  # this server has no HEAD
        info: dict[str, Any] = {"name": path, "type": "file", "size": _length(headers)}
        with suppress(TypeError, ValueError):  # missing, or not a date
            info["mtime"] = parsedate_to_datetime(headers.get("Last-Modified") or "")
        if "mtime" not in info:  # else many servers make the tag of time and size, which tells no more
            info["ETag"] = headers.get("ETag")
        return info

    def exists(self, path: str, **options: Any) -> bool:
        """Return whether the server has the file. Raises OSError where it cannot be asked."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Return whether the address looks like a folder: a web server has none."""
        return path.endswith("/")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """Raises NotImplementedError: there is no such request."""
        raise NotImplementedError("a web server lists no folders; give an image, a manifest or a .tar")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return the file's bytes, or those from `start` up to `end`. Raises OSError or ImageError."""
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
        answer = self._fetch(path, headers)
        if not headers or answer.status == 206:
            return answer.data
        if len(answer.data) > MOST_WHOLE:
            raise Refused("the server sends no parts of files, and this one is large: download it first")
        return answer.data[start or 0 : end]

    def _fetch(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET", read: bool = True
    ) -> _Answer:
        return _fetch(path, headers, method, read, anywhere=path == self.given)


class _RefusedBy(Refused):
    """The server's answer is an error. `code` : its status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server answers {code} {reason}")
        self.code = code


class _Answer(NamedTuple):
    status: int
    headers: Message
    data: bytes


def _fetch(url: str, headers: dict[str, str] | None, method: str, read: bool, anywhere: bool) -> _Answer:
    """Return the server's answer. anywhere : it may redirect to any host.

    Raises Passing, or another OSError, with the reason where there is none, or an error; ImageError where
    `url` is no address.
    """
    with _answer(_Request(url, headers or {}, method, anywhere)) as answer:
        data = _body(answer) if read and method == "GET" else b""
        return _Answer(answer.status, answer.headers, data)


@contextmanager
def _answer(wanted: _Request) -> Iterator[HTTPResponse]:
    """Yield the server's answer. Raises OSError or ImageError."""
    try:
        request = wanted.to_send()
        with (
            deadline(2 * retries.TIMEOUT) as timer,
            _OPENER.open(request, timeout=retries.TIMEOUT) as answer,
        ):
            timer.cancel()  # the headers are here
            yield answer
            keep(answer)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(f"the server answers {error.code} {error.reason}") from None
        said = first_line(error.reason)
        if error.code in PASSING:
            raise Passing(f"the server answers {error.code} {said}", _retry_after(error.headers)) from None
        raise _RefusedBy(error.code, said) from None
    except urllib.error.URLError as error:
        kind = Passing if isinstance(error.reason, OSError) and may_pass(error.reason) else Refused
        raise kind(f"the server does not answer: {error.reason}") from None
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise Passing(f"the server breaks off: {error or type(error).__name__}") from None
    except ValueError as error:  # an address that is none, or a name that no host can have
        raise ImageError(f"is no address of a file on the web: {first_line(error)}") from None


def _body(answer: HTTPResponse) -> bytes:
    """Return the whole body. Raises OSError if it is cut off or too slow, ImageError if it is too large."""
    started, size, parts = time.monotonic(), 0, []
    expected = _length(answer.headers)
    while part := answer.read1(1 << 20):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ImageError(f"is larger than {MOST_BYTES >> 30} GiB")
        seconds = time.monotonic() - started
        if seconds > seconds_for(size):
            raise Passing(f"the server sends too slowly: {size:,} bytes in {seconds:.0f} seconds")
    if expected is not None and size < expected and not answer.chunked:
        raise ConnectionResetError(f"{size:,} of {expected:,} bytes were sent")
    return b"".join(parts)


def _length(headers: Message) -> int | None:
    """Return the size that the server tells; None where that is missing or absurd."""
    length = headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _retry_after(headers: Message) -> float | None:
    """Return the seconds after which the server wants to be asked again, from a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    with suppress(TypeError, ValueError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


class _Request(NamedTuple):
    """What is asked for. anywhere : the server may redirect to any host."""

    url: str
    headers: dict[str, str]
    method: str
    anywhere: bool

    def to_send(self, url: str = "") -> _Sent:
        """Return the request to send, to `url` after a redirect. Raises ValueError where it is no address."""
        request = _Sent(quote(url or self.url, safe=_SAFE), headers=self.headers, method=self.method)
        request.add_header("User-Agent", "bottleneck-features")
        request.wanted = self
        return request


class _Sent(urllib.request.Request):
    """A request on its way. wanted : what it is sent for."""

    wanted: _Request


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        request: urllib.request.Request,
        file: IO[bytes],
        code: int,
        message: str,
        headers: HTTPMessage,
        url: str,
    ) -> _Sent | None:
        assert isinstance(request, _Sent)  # no other passes this opener
        wanted = request.wanted
        refused = redirect_refusal(url if wanted.anywhere else wanted.url, url)
        if refused is not None:
            file.close()
            raise Refused(f"the server redirects to {refused}")
        super().redirect_request(request, file, code, message, headers, url)  # raises for other methods
        return wanted.to_send(url)


_OPENER = urllib.request.build_opener(Handler, SecureHandler, _Redirects)
