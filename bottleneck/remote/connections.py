"""Connections of urllib that are kept: each thread has one to each host, which its next request uses.

urllib makes one for each request, which costs a round trip, and two more where it is encrypted.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

MOST_KEPT = 4  # connections that a thread keeps


class _Kept(dict[tuple[Any, ...], HTTPConnection]):
    """Connections that wait for a request, by where they lead. They are closed when their thread ends."""

    def __del__(self) -> None:
        for connection in self.values():
            connection.close()


class _Present:
    """The request that a thread makes: its connections, and whether its time is over."""

    def __init__(self) -> None:
        self.connections: list[HTTPConnection] = []
        self.over = False

    def end(self) -> None:
        """Shut the connections down, in a timer's thread: reading from them fails at once."""
        self.over = True
        for connection in self.connections:
            with suppress(OSError, AttributeError):  # AttributeError: it is not connected yet
                connection.sock.shutdown(socket.SHUT_RDWR)


class _Own(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.kept, self.present = _Kept(), _Present()


_own = _Own()


@contextmanager
def deadline(seconds: float) -> Iterator[threading.Timer]:
    """Make one request in the block; its connections are closed after it unless `keep` was called.

    The timer that is yielded ends the request after so many seconds, unless it is cancelled: each byte of
    the headers could come just before the socket's own time is over.
    """
    _own.present = present = _Present()
    timer = threading.Timer(seconds, present.end)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()
        for connection in present.connections:
            connection.close()


def keep(answer: HTTPResponse) -> None:
    """Keep the connection of an answer for a later request, if the answer was read to its end."""
    request = getattr(answer, "request", None)
    if isinstance(request, _Request) and not answer.will_close and (answer.isclosed() or answer.length == 0):
        request.keep()


class _Request:
    """Stands for the new connection that urllib makes for each request.

    The request is sent on a kept one, and on a new one if the server has closed that meanwhile.
    """

    sock = None  # urllib closes what it finds here

    def __init__(self, kind: type[HTTPConnection], host: str, timeout: float, **options: Any) -> None:
        self._make = partial(kind, host, timeout=timeout, **options)
        self._key: tuple[Any, ...] = (kind, host)
        self._timeout = timeout
        self._tunnel: tuple[str, Any] | None = None

    def set_debuglevel(self, level: int) -> None:
        """As urllib calls it."""

    def set_tunnel(self, host: str, headers: Any = None) -> None:
        """Lead through a proxy to `host`."""
        self._tunnel, self._key = (host, headers), (*self._key, host)

    def request(self, *request: Any, **options: Any) -> None:
        """Send a request: method, address, body and headers."""
        request[3].pop("Connection", None)  # urllib asks the server to close
        self._sent = request, options
        kept = _own.kept.pop(self._key, None)
        if kept is None or kept.sock is None:
            return self._send_anew()
        self._connection, self._is_new = kept, False
        kept.sock.settimeout(self._timeout)
        try:
            self._send()
        except (HTTPException, ConnectionError):
            self._send_anew()

    def getresponse(self) -> HTTPResponse:
        """Return the answer."""
        try:
            answer = self._connection.getresponse()
        except (HTTPException, ConnectionError):
            if self._is_new or _own.present.over:
                raise
            self._send_anew()
            answer = self._connection.getresponse()
        answer.request = self  # type: ignore[attr-defined]
        return answer

    def _send_anew(self) -> None:
        self._connection, self._is_new = self._make(), True
        if self._tunnel is not None:
            self._connection.set_tunnel(self._tunnel[0], headers=self._tunnel[1])
        self._send()

    def _send(self) -> None:
        _own.present.connections.append(self._connection)
        request, options = self._sent
        self._connection.request(*request, **options)
        if _own.present.over:  # while it was connecting, when there was nothing to shut down
            raise TimeoutError("no connection in time")

    def keep(self) -> None:
        """Keep the connection for a later request."""
        _own.present.connections.remove(self._connection)
        while len(_own.kept) >= MOST_KEPT:
            _own.kept.pop(next(iter(_own.kept))).close()
        _own.kept[self._key] = self._connection

    def close(self) -> None:
        """As urllib calls it; `deadline` closes what is not kept."""


class Handler(urllib.request.HTTPHandler):
    """Opens http."""

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_Request, HTTPConnection), request)  # type: ignore[arg-type]


class SecureHandler(urllib.request.HTTPSHandler):
    """Opens https."""

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        secure = partial(_Request, HTTPSConnection, context=certificates())
        return self.do_open(secure, request)  # type: ignore[arg-type]


@cache
def certificates() -> ssl.SSLContext:
    """The certificates that the system trusts; reading them takes longer than a request."""
    return ssl.create_default_context()


def _forget() -> None:
    """Close the connections of a process that was forked: they are its parent's too."""
    for connection in _own.kept.values():
        connection.close()
    _own.kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
