"""URLs: their secrets, their hosts, and which of them lists and servers may name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit

_allowed: ContextVar[tuple[bool, bool]] = ContextVar("allowed", default=(False, False))


def one_line(error: BaseException) -> str:
    """Return an exception's message as one short line of printable text without secrets of URLs."""
    text = without_secrets(repr(str(error))[1:-1] or type(error).__name__)
    return text if len(text) <= 200 else text[:200] + "…"


_USER = re.compile(r"//[^/@\s]*@")
_SECRET = re.compile(
    r"([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature"
    r"|sig|token|access_token|api_?key|password)=)[^&#\s'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return a URL, or a message with URLs, without user, password and what signs or permits a request."""
    return _SECRET.sub(r"\1REMOVED", _USER.sub("//", text))


@contextmanager
def allow(local: bool = False, remote: bool = False) -> Iterator[None]:
    """Allow lists and caches in this block to name files of this machine, or of other hosts."""
    token = _allowed.set((local, remote))
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> tuple[bool, bool]:
    """Return whether files of this machine, and of other hosts, may be named (`allow`)."""
    return _allowed.get()


def redirect_refusal(before: str, after: str) -> str | None:
    """Return why a server's redirect from one URL to another must not be followed; None where it may be.

    It may stay on its host, also from http to https; the user may allow others.
    """
    (scheme, host), onto = host_of(before) or ("", ""), host_of(after)
    if onto is not None and onto[0] in ("http", "https"):
        same = onto in ((scheme, host), ("https", host))
        return None if same or allowed()[1] else f"{onto[1]}, another host; --allow-remote allows it"
    return f"{after[:100]}, which is no address on the web"


def split_chain(url: str) -> tuple[str, str, str]:
    """Split a chain of fsspec at its first "::", as `str.partition` does; an IPv6 address is not split."""
    address = re.match(r"[a-z]+://(?:[^/@]*@)?\[[0-9a-f:.%]*", url, re.IGNORECASE)
    start = address.end() if address else 0
    head, chain, rest = url[start:].partition("::")
    return url[:start] + head, chain, rest


def host_of(url: str) -> tuple[str, str] | None:
    """Return scheme and host of a plain URL; None for a path, a chain and what is no URL."""
    if split_chain(url)[1]:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (parts.scheme.lower(), parts.netloc.lower()) if parts.netloc else None
