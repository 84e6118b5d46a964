"""Files of web servers as an fsspec filesystem, with the standard library alone.

fsspec's own HTTP filesystem needs two more packages. A web server lists no folders, so a source is an image,
a manifest or a .tar. Requests are GET and HEAD.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from bottleneck.errors import ImageError

SCHEMES = ("http", "https")
TIMEOUT = 30.0  # seconds without an answer, or without another byte
MOST_BYTES = 1 << 30  # of an answer; a server may send without end
_SAFE = "/%:=&?~#+!$,;'@()*[]"  # not quoted in a URL; % keeps what is quoted already


class WebFileSystem(AbstractFileSystem):
    """Reads single files; paths are whole URLs."""

    protocol = SCHEMES

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return size, time of last change and version tag, where the server sends them. Raises OSError."""
        try:
            with _answer(path, method="HEAD") as answer:
                headers = answer.headers
        except _Refused as error:
            if error.code not in (403, 405, 501):
                raise
            with _answer(path) as answer:  # this server has no HEAD; the body is not read
                headers = answer.headers
        info: dict[str, Any] = {"name": path, "type": "file", "size": None, "ETag": headers.get("ETag")}
        if (length := headers.get("Content-Length", "")).isdigit():
            info["size"] = int(length)
        with suppress(TypeError, ValueError):  # missing, or not a date
            info["mtime"] = parsedate_to_datetime(headers.get("Last-Modified") or "")
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
        with _answer(path, headers) as answer:
            data = answer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ImageError(f"is larger than {MOST_BYTES >> 30} GiB")
        return data if not headers or answer.status == 206 else data[start or 0 : end]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        size = self.info(path)["size"]
        if size is None:
            raise OSError("the server does not tell the size, so no part can be asked for")
        return _WebFile(self, path, mode, size=size)


class _WebFile(AbstractBufferedFile):
    """A file that is read in blocks."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


class _Refused(OSError):
    """The server's answer is an error. `code` : its status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server answers {code} {reason}")
        self.code = code


@contextmanager
def _answer(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Iterator[HTTPResponse]:
    """Yield the server's answer; OSError with the reason where there is none, or an error."""
    request = urllib.request.Request(quote(url, safe=_SAFE), headers=headers or {}, method=method)
    request.add_header("User-Agent", "bottleneck-features")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(f"the server answers {error.code} {error.reason}") from None
        raise _Refused(error.code, str(error.reason)) from None
    except urllib.error.URLError as error:
        raise OSError(f"the server does not answer: {error.reason}") from None
    except (HTTPException, TimeoutError) as error:
        raise OSError(f"the server breaks off: {error or type(error).__name__}") from None
