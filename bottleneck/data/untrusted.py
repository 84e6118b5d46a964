"""What strangers' files may do: bytes that a library parses, and what a list or cache may name.

Exceptions of a parser become ImageError, and its warnings are dropped.

A list that lies on this machine is the user's own and may name anything. A list from the web, or a cache, may
come from a stranger: it names files of its own host, or below its own folder; the user must allow the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bottleneck.errors import CacheError, ImageError
from bottleneck.files import user_cache

_allowed: ContextVar[tuple[bool, bool]] = ContextVar("allowed", default=(False, False))
LOCAL_SCHEMES = ("file", "local", "memory", "dir")


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


class _Parsing:
    """Message pattern of a warning filter that matches only in threads that are inside `parsing`.

    pattern : for those who copy the filters, as scikit-learn does for its jobs: it matches nothing.
    """

    here = threading.local()
    pattern = "(?!)"

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
def allow(local: bool = False, remote: bool = False) -> Iterator[None]:
    """Allow lists and caches in this block to name files of this machine, or of other hosts."""
    token = _allowed.set((local, remote))
    try:
        yield
    finally:
        _allowed.reset(token)


def redirect_refusal(before: str, after: str) -> str | None:
    """Return why a server's redirect from one URL to another must not be followed; None where it may be.

    It may stay on its host, also from http to https; the user may allow others.
    """
    (scheme, host), onto = _host(before) or ("", ""), _host(after)
    if onto is not None and onto[0] in ("http", "https"):
        same = onto in ((scheme, host), ("https", host))
        return None if same or _allowed.get()[1] else f"{onto[1]}, another host; --allow-remote allows it"
    return f"{after[:100]}, which is no address on the web"


def refusal(key: str, root: str) -> str | None:
    """Return why an image must not be opened that a list at the URL `root` names; None where it may be.

    Relative paths, and URLs of the list's own host, may be.
    """
    local, remote = _allowed.get()
    if "://" not in key and "::" not in key:
        return None
    if _host(key) is not None and _host(key) == _host(root):
        return None
    if any(part.partition(":")[0].lower() in LOCAL_SCHEMES for part in key.split("::")):
        return (
            None if local else "is a file of this machine in a list from elsewhere; --allow-local allows it"
        )
    return None if remote else "is on another host than the list that names it; --allow-remote allows it"


def require_trusted_root(root: str, cache: str | os.PathLike[str]) -> None:
    """Raise CacheError unless the images of a cache may be read at the folder or URL `root`.

    They may below the current folder and below the cache's own, where the user allows it, and where a command
    of this user wrote the cache from that root (`remember_root`).
    """
    local, remote = _allowed.get()
    if "://" in root or "::" in root:
        if (
            remote
            or _record(root, cache).exists()
            or (root.lower().startswith("zip://::") and _is_near(root.partition("::")[2], cache))
        ):
            return
        raise CacheError(
            f"{cache} names images at {root}, another host, and a cache may come from a stranger.",
            "Repeat the command with --allow-remote if you trust it.",
        )
    if not (local or _is_near(root, cache) or _record(root, cache).exists()):
        raise _astray(cache, f"images in {root}")


def remember_root(root: str, cache: str | os.PathLike[str]) -> None:
    """Record that this user wrote `cache` from `root`, so that later commands read its images there.

    The record names both: another cache at this path, or another root in this cache, is not trusted by it.
    """
    with suppress(OSError):  # a home that cannot be written: the user allows it by the flag
        record = _record(root, cache)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def _record(root: str, cache: str | os.PathLike[str]) -> Path:
    pair = f"{root}\0{os.path.realpath(cache)}".encode("utf-8", "surrogateescape")
    return user_cache() / "sources" / hashlib.sha256(pair).hexdigest()


def require_trusted_keys(keys: Iterable[str], root: str, cache: str | os.PathLike[str]) -> None:
    """Raise CacheError if a key of a cache leads out of its root to where `require_trusted_root` refuses."""
    local, remote = _allowed.get()
    for key in keys:
        if "://" in key or "::" in key:
            if not (local and remote) and (why := refusal(key, root)) is not None:
                raise CacheError(f"{cache} names the image {without_secrets(key)}, which {why}.")
            continue
        is_path_out = "://" not in root and "::" not in root and (key.startswith("/") or ".." in key)
        if is_path_out and not local and not _is_near(os.path.join(root, key), cache):
            raise _astray(cache, f"the image {key}")


def _astray(cache: str | os.PathLike[str], what: str) -> CacheError:
    return CacheError(
        f"{cache} names {what}, neither below the current folder nor below that of the cache, and a cache "
        "may come from a stranger.",
        "Repeat the command with --allow-local if you trust it.",
    )


def _is_near(root: str, cache: str | os.PathLike[str]) -> bool:
    path = os.path.realpath(root)
    folders = (os.path.realpath(os.curdir), os.path.dirname(os.path.realpath(cache)))
    return any(os.path.commonpath([folder, path]) == folder for folder in folders)


def split_chain(url: str) -> tuple[str, str, str]:
    """Split a chain of fsspec at its first "::", as `str.partition` does; an IPv6 address is not split."""
    address = re.match(r"[a-z]+://(?:[^/@]*@)?\[[0-9a-f:.%]*", url, re.IGNORECASE)
    start = address.end() if address else 0
    head, chain, rest = url[start:].partition("::")
    return url[:start] + head, chain, rest


def _host(url: str) -> tuple[str, str] | None:
    """Return scheme and host of a plain URL; None for a path, a chain and what is no URL."""
    if split_chain(url)[1]:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (parts.scheme.lower(), parts.netloc.lower()) if parts.netloc else None
